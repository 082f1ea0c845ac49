"""The W&B report as it would be sent: its panels ask for the names under which runs log."""

import json

from lfvit.tracking import dashboard


def test_the_report_is_written_offline(tmp_path, capsys):
    path = tmp_path / "new" / "report.json"
    arguments = ["--project", "lfvit", "--group", "size", "--offline", str(path)]
    dashboard.main(arguments)
    assert "nothing was sent" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["project"]["name"] == "lfvit"
    assert report["displayName"] == "Accuracy against cost: size"
    panels = {}
    for block in report["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            for runs in block["metadata"]["runSets"]:
                assert '"size"' in json.dumps(runs["filters"])
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                panels.setdefault(panel["viewType"], []).append(panel["config"])
    (scatter,) = panels["Scatter Plot"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:gmacs", "summary:top1")
    drawn = {name for plot in panels["Run History Line Plot"] for name in plot["metrics"]}
    assert {"val/first_top1", "val/top1", "val/early_exit_top1", "val/exit_fraction"} <= drawn
    assert panels["Media Browser"][0]["mediaKeys"] == ["regions"]
    assert '"threshold_curve"' in json.dumps(panels["Vega2"])
    assert '"predictions"' in json.dumps(panels["Weave"])
    columns = [c["accessor"] for c in panels["Parallel Coordinates Plot"][0]["columns"]]
    assert columns[1] == "config:method.value.region_size"
    assert columns[-1] == "summary:top1"
