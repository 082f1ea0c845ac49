"""The report as it would be sent: it must ask for the names under which runs are logged."""

import json

import pytest

from lfvit.tracking import dashboard
from lfvit.tracking.dashboard import build_report, write_report


@pytest.fixture
def panels(tmp_path):
    """The panels of a report by kind, and the filters of their runs."""

    def written(**options):
        path = tmp_path / "report.json"
        write_report(build_report("lfvit", "", **options), path)
        content = json.loads(path.read_text())
        assert content["project"] == "lfvit"
        found, filters = {}, []
        for block in content["spec"]["blocks"]:
            if block["type"] == "panel-grid":
                filters += [runs["filters"] for runs in block["metadata"]["runSets"]]
                for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                    found.setdefault(panel["viewType"], []).append(panel["config"])
        return found, filters

    return written


def test_accuracy_against_cost_is_of_the_summary(panels):
    (scatter,) = panels()[0]["Scatter Plot"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:gmacs", "summary:top1")


def test_lines_tables_and_regions_exist_under_their_names(panels):
    """test_loggers.py shows that runs log under these names."""
    found, _ = panels()
    drawn = {name for plot in found["Run History Line Plot"] for name in plot["metrics"]}
    assert {"val/first_top1", "val/top1", "val/early_exit_top1", "val/exit_fraction"} <= drawn
    assert {plot["xAxis"] for plot in found["Run History Line Plot"]} == {"epoch"}
    assert found["Media Browser"][0]["mediaKeys"] == ["regions"]
    assert '"threshold_curve"' in json.dumps(found["Vega2"])
    assert '"predictions"' in json.dumps(found["Weave"])


def test_settings_of_a_sweep_are_columns(panels):
    found, filters = panels(group="size", columns=["method.region_size", "optimizer.lr"])
    names = [column["accessor"] for column in found["Parallel Coordinates Plot"][0]["columns"]]
    assert names[:2] == ["config:method.value.region_size", "config:schedule.value.lr"]
    assert "summary:top1" in names
    for runs in filters:
        assert any(f["key"]["name"] == "group" and f["value"] == "size" for f in runs["filters"])


def test_the_command_line_writes_offline(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["dashboard", "--project", "p", "--offline", str(out)])
    dashboard.main()
    assert "nothing was sent" in capsys.readouterr().out
    assert json.loads(out.read_text())["title"] == "Accuracy against cost"
