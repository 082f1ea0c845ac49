"""The search for settings that no other beats in accuracy and cost."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands import search as command
from lfvit.errors import ConfigError

FAST = [*NEEDLE_FAST, "data.train_images=16", "data.val_images=8", "trainer.max_epochs=1"]
FAST += ["lr_scheduler.warmup_epochs=0", "logger=none"]


@pytest.fixture
def search(composed, tmp_path, monkeypatch, without_plots):
    """`python search.py ...` in a folder of its own; the trials."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[dict]:
        fast = f"overrides={json.dumps(FAST)}"
        cfg = composed("search", *arguments, *([] if "overrides" in str(arguments) else [fast]))
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return command.search(cfg)

    return run


def documented() -> list[str]:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("python search.py"))
    return shlex.split(line)[2:]


def beaten(row, rows):
    """Whether another is at least as good in both, and better in one."""
    return any(
        other["top1"] >= row["top1"]
        and other["gmacs"] <= row["gmacs"]
        and (other["top1"], other["gmacs"]) != (row["top1"], row["gmacs"])
        for other in rows
    )


def test_a_search_ends_with_a_frontier_and_goes_on(search, monkeypatch, capsys):
    """Documented command, few trials; stopped in the second, then continued with more."""
    assert [row["number"] for row in search(*documented(), "trials=1")] == [0]
    stop, original = itertools.count(), command.run_job

    def stopped(cfg, root, **options):
        if next(stop) == 0:
            raise KeyboardInterrupt
        return original(cfg, root, **options)

    monkeypatch.setattr(command, "run_job", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(*documented(), "trials=3")
    rows = search(*documented(), "trials=3")
    assert [row["number"] for row in rows] == [0, 2, 3]  # 1 was interrupted, 2 is its repetition
    assert len({json.dumps(row["settings"]) for row in rows}) == 3
    found = json.loads(Path("outputs/search/search.json").read_text())["trials"]
    assert found == rows
    for row in rows:
        assert row["settings"].keys() == {"method.region_size", "method.alpha", "threshold"}
        evaluation = json.loads(Path(row["directory"], "evaluation/evaluate.json").read_text())
        (point,) = [p for p in evaluation["operating_points"] if p["rule"] == "threshold"]
        assert point["threshold"] == pytest.approx(row["settings"]["threshold"])
        assert (point["top1"], point["gmacs"]) == (row["top1"], row["gmacs"])
        assert evaluation["method"]["region_size"] == row["settings"]["method.region_size"]
    assert [row["frontier"] for row in rows] == [not beaten(row, rows) for row in rows]
    table = Path("outputs/search/frontier.md").read_text()
    assert table.count("| method.region_size=") == sum(row["frontier"] for row in rows)
    assert "frontier.md" in capsys.readouterr().out


def test_failing_trials_are_listed_and_a_budget_is_kept(search, monkeypatch, capsys):
    space = ("space.method.region_size=[9]", "~space.threshold", "space.threshold=[0.5]")
    rows = search("trials=2", "output_dir=failing", *space)
    assert all("region_size=9 does not fit" in row["error"] for row in rows)
    assert not any(row["frontier"] for row in rows)
    assert "error: trial 1: method.region_size=9" in capsys.readouterr().err
    rows = search("trials=1", "max_gmacs=0.001", "output_dir=small")
    assert "GMACs or more, whatever the threshold, and max_gmacs=0.001" in rows[0]["error"]
    assert not [*Path("small").rglob("last.ckpt")]
    # above the first pass alone, below what an image costs that goes on
    costly = ("space.method.region_size=[7]", "space.threshold.low=2", "space.threshold.high=3")
    rows = search("trials=1", "max_gmacs=0.006", "output_dir=tight", *costly)
    assert rows[0]["error"] is None
    assert rows[0]["gmacs"] > 0.006
    assert not rows[0]["frontier"]


def test_values_of_every_kind(search, monkeypatch):
    tried = []

    def pretend(settings, chosen, out, trial):
        tried.append(dict(chosen))
        return {"top1": chosen["optimizer.lr"], "gmacs": chosen["method.gca_start"]}

    monkeypatch.setattr(command, "_try", pretend)
    rows = search(
        "trials=12",
        "space.threshold=null",
        "space.optimizer.lr={low:1e-5,high:1e-1,log:true}",
        "space.method.gca_start={low:0,high:4,step:2}",
        "space.method.selector=[ngca,random]",
    )
    assert len(tried) == 12
    assert {s["method.gca_start"] for s in tried} <= {0, 2, 4}
    assert {s["method.selector"] for s in tried} == {"ngca", "random"}
    rates = [s["optimizer.lr"] for s in tried]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 1  # a linear scale would hardly get there
    assert [row["frontier"] for row in rows] == [not beaten(row, rows) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trials=0"], "trials=0 is not valid"),
        (["space.method.alhpa=[0.3]"], "method.alhpa is no setting; did you mean alpha"),
        (["overrides=augment.mixpu=1"], "augment.mixpu is no setting; did you mean mixup"),
        (["overrides=data.train_imags=3"], "train_imags is no setting; did you mean train_images"),
        (["space.threshold={low:0.3,high:2,step:0}"], "step=0 is not valid"),
        (["space.threshold=0.5"], "space.threshold=0.5 must be a list of values, or low and high"),
        (["space.threshold.low=0.99"], "low=0.99 has to be below high=0.95"),
        (["space.threshold.log=true", "space.threshold.low=0"], "log=true needs low above 0"),
        (["space.method=null", "space.threshold=null"], "space={} is not valid"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_trial(search, arguments, message):
    with pytest.raises(ConfigError, match=message):
        search(*arguments)
    assert not Path("outputs").exists()
