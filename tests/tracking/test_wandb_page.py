"""What docs/wandb.md names exists: commands, settings, and a sweep that W&B's agent runs."""

import re
import shlex

import yaml
from wandb.cli.cli import cli
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from conftest import ROOT

PAGE = (ROOT / "docs" / "wandb.md").read_text()


def test_the_sweep_is_one_that_the_agent_runs():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    sweep = yaml.safe_load(text)
    command = create_sweep_command(sweep["command"])
    given = {name: {"value": p["values"][0]} for name, p in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": given})["args_no_hyphens"]
    assert (ROOT / sweep["program"]).exists()
    assert command[3:] == ["logger=wandb", "${args_no_hyphens}"]
    assert words == ["method.region_size=4"]


def test_command_lines_compose(composed):
    """tests/tracking/test_loggers.py runs them."""
    lines = re.findall(r"\.venv/bin/python (train|evaluate)\.py ([^#\n]*)", PAGE)
    assert len(lines) >= 5
    for name, overrides in lines:
        words = [word for word in shlex.split(overrides) if word != "-m"]
        cfg = composed(name, *(word.split(",")[0] if "[" not in word else word for word in words))
        assert cfg.logger.wandb._target_ == "lfvit.tracking.loggers.WandbLogger"


def test_commands_and_settings_exist(composed):
    assert set(re.findall(r"\.venv/bin/wandb (\w+)", PAGE)) <= set(cli.commands)
    cfg = composed("train", "logger=[csv,tensorboard,wandb]")
    for name in re.findall(r"`((?:callbacks|logger)\.[\w.]+)", PAGE):
        group = cfg
        for part in name.split("."):
            assert part in group, name
            group = group[part]
