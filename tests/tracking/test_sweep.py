"""A W&B sweep runs the jobs of Hydra's multirun, argument by argument."""

import itertools
import sys

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from conftest import ROOT
from lfvit.errors import ConfigError
from lfvit.tracking import sweep
from lfvit.tracking.sweep import sweep_config

OVERRIDES = [
    "method.region_size=4,5,6",
    "method.alpha=0.5,1.0",
    "seed=range(0,2)",
    "reducer=none,evit",
    "schedule.lr=1e-3,0.002",
    "trainer.gradient_clip_val=null,1.0",
    "+method.background=true,false",
    "schedule.epochs=3",
]


def hydra_jobs(overrides):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return jobs


def agent_jobs(config):
    """The arguments that W&B's agent gives train.py for every point of a grid, by W&B's code."""
    command = create_sweep_command(list(config["command"]))
    assert command[:4] == ["${env}", "${interpreter}", "${program}", "logger=wandb"]
    names, lists = zip(*((k, v["values"]) for k, v in config["parameters"].items()), strict=True)
    for values in itertools.product(*lists):
        given = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        swept = create_sweep_command_args({"args": given})["args_no_hyphens"]
        assert command[-1] == "${args_no_hyphens}"
        yield [*command[4:-1], *swept]


def test_the_jobs_are_hydras(composed):
    config = yaml.safe_load(yaml.safe_dump(sweep_config(OVERRIDES)))  # as wandb sweep reads it
    assert config["method"] == "grid"
    theirs, ours = hydra_jobs(OVERRIDES), list(agent_jobs(config))
    assert len(ours) == len(theirs) == 3 * 2 * 2 * 2 * 2 * 2 * 2

    def content(job):
        return tuple(sorted(o.replace("1e-3", "0.001").replace("1e-03", "0.001") for o in job))

    assert {content(job) for job in ours} == {content(job) for job in theirs}
    for job in (ours[0], ours[-1]):  # and Hydra takes the agent's spelling
        cfg = composed("train", *(o for o in job if "background" not in o))
        assert cfg.schedule.epochs == 3
        assert cfg.schedule.lr in (0.001, 0.002)
        assert cfg.trainer.gradient_clip_val in (None, 1.0)


def test_what_it_searches_for_is_what_hydra_is_told():
    config = sweep_config(
        ["seed=0,1", "callbacks.monitor.metric=val/loss", "callbacks.monitor.mode=min"]
    )
    assert config["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert config["parameters"] == {"seed": {"values": [0, 1]}}
    assert config["project"] == "lfvit"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "nothing to sweep: give a setting several values"),
        (["method.alpha=interval(0,1)"], r"interval.*write them as method.alpha=A,B,C"),
    ],
)
def test_what_is_no_grid_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        sweep_config(overrides)


def test_the_command_line_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep", "seed=0,1,2", "image_size=96"])
    sweep.main()
    assert "3 jobs, written to sweep.yaml" in capsys.readouterr().out
    content = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert (ROOT / content["program"]).exists()
    assert "image_size=96" in content["command"]
