"""The commands of docs/wandb.md, as they stand there, at a small size and without a network."""

import re
import runpy
import shlex
import sys

import pytest
import yaml
from wandb.cli.cli import cli
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from conftest import NEEDLE_FAST, ROOT

PAGE = (ROOT / "docs" / "wandb.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
SMALL = [o for o in NEEDLE_FAST if o.startswith(("data", "backbone", "callbacks", "trainer"))]


def starting(*words):
    found = [c for c in COMMANDS if c[: len(words)] == list(words)]
    assert found, words
    return found


def run(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", arguments)
    if arguments[0] == "-m":
        monkeypatch.setattr(sys, "argv", arguments[1:])
        monkeypatch.delitem(sys.modules, arguments[1], raising=False)
        runpy.run_module(arguments[1], run_name="__main__")
    else:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


@pytest.mark.parametrize(
    "command",
    [c for c in starting(".venv/bin/python", "train.py") if "logger.wandb.offline=true" in c],
    ids=" ".join,
)
def test_trainings(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, [*command[1:], *SMALL, "debug=fast"])
    folders = list(tmp_path.glob("outputs/train/*/**/offline-run-*"))
    assert len(folders) == (2 if "-m" in command else 1)


def test_evaluations(trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = starting(".venv/bin/python", "evaluate.py")
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    arguments = [a.replace("FILE", str(checkpoint)) for a in command[1:]]
    run(monkeypatch, [*arguments, "data.num_workers=0", "trainer.accelerator=cpu"])
    assert len(list(tmp_path.glob("outputs/evaluate/*/wandb/offline-run-*"))) == 1


def test_the_sweep_of_the_page_is_one_that_the_agent_runs():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    sweep = yaml.safe_load(text)
    command = create_sweep_command(sweep["command"])
    given = {name: {"value": p["values"][0]} for name, p in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": given})["args_no_hyphens"]
    assert (ROOT / sweep["program"]).exists()
    assert command[3:] == ["logger=wandb", "${args_no_hyphens}"]
    assert words == ["method.region_size=4"]


def test_wandb_has_the_commands_that_are_named():
    named = {command[1] for command in starting(".venv/bin/wandb")}
    assert named == {"login", "sync", "sweep", "agent"}
    assert named <= set(cli.commands)


def test_settings_that_are_named_exist(composed):
    cfg = composed("train", "logger=many")
    for name in re.findall(r"`((?:callbacks|logger)\.[\w.]+)", PAGE):
        place = cfg
        for part in name.split("."):
            assert part in place, name
            place = place[part]
