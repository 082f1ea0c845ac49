"""Whatever stands on a command line: checked settings, or one clear error, and no stray files."""

import logging
import os
import re
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fuzzing import SECONDS, fuzz, limits
from hypothesis import assume
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT, photograph
from lfvit.commands import train as training
from lfvit.runs import resume
from lfvit.runs.configs import compose_config
from lfvit.runs.setup import make_data
from lfvit.utils.validation import plain

SMALL = ["data.train_images=8", "data.val_images=6", "data.num_workers=0", "logger=none"]
SCRIPTS = {  # what each command is given beside the fuzzed arguments
    "train": [*SMALL, "trainer.accelerator=cpu"],
    "evaluate": ["ckpt_path=weights.pth", *SMALL[2:], "trainer.accelerator=cpu"],
    "predict": ["ckpt_path=weights.pth", "image=picture.png", "accelerator=cpu"],
    "benchmark": ["backbone=vit_micro", "image_size=112", "num_classes=3", "logger=none"],
    "search": ["trials=1"],
    "reproduce": ["plan=true", "artifacts=overview"],
}
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
OPTIONS = {g: sorted(p.stem for p in (ROOT / "conf" / g).glob("*.yaml")) for g in GROUPS}


class Checked(BaseException):
    """Every check has passed: the work would begin now."""


def keys_of(script: str) -> list[str]:
    """The full names of a command's settings, groups of settings included."""
    needed = [o for o in SCRIPTS[script] if o.startswith(("ckpt_path", "image="))]
    cfg = compose_config(script, needed)

    def below(node: DictConfig, prefix: str) -> list[str]:
        names = []
        for key in node:
            name = f"{prefix}{key}"
            inner = None if OmegaConf.is_missing(node, key) else node._get_node(key)
            names += [name, *(below(inner, f"{name}.") if isinstance(inner, DictConfig) else [])]
        return names

    return [key for key in below(cfg, "") if not key.startswith(("runs.", "artifact."))]


KEYS = {script: keys_of(script) for script in SCRIPTS}
NUMBERS = ["-1", "0", "1", "2", "3", "7", "16", "100", "10000000", "0.5", "-0.5", "1e-3", "1e400"]
WORDS = ["true", "false", "null", "nan", "inf", "auto", "none", "mlp", "ngca", "evit", "cosine"]
PLACES = ["weights.pth", "picture.png", "nowhere/x", ".", "/proc/nowhere", "~nobody/x"]
SHAPES = ["[]", "[1,2]", "[0.5,x]", "{}", "{a:1}", "{name:evit}", "[[1]]", "'a b'", '""', "1,2"]
ODD = ["${seed}", "${nothing}", "${", "${oc.env:NOTHING}", "???", "choice(1,2)", "range(3)", "a=b"]
VALUES = st.one_of(
    *(st.sampled_from(some) for some in (NUMBERS, NUMBERS, WORDS, PLACES, SHAPES, ODD)),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=8),
)


@st.composite
def arguments(draw, script: str) -> list[str]:
    """Overrides of real settings and groups, invented ones, and what is no override."""

    def one(kind: str) -> str:
        match kind:
            case "value":
                key = draw(st.sampled_from(KEYS[script]))
                return f"{draw(st.sampled_from(['', '', '', '+', '++']))}{key}={draw(VALUES)}"
            case "delete":
                return f"~{draw(st.sampled_from(KEYS[script]))}"
            case "group":
                group = draw(st.sampled_from(GROUPS))
                return f"{group}={draw(st.sampled_from([*OPTIONS[group], 'other', 'null']))}"
            case "new":
                return f"+{draw(st.sampled_from(KEYS[script]))}.new={draw(VALUES)}"
            case "flag":
                return draw(st.sampled_from(["-m", "--cfg=job", "--resolve", "-x", "--help", "--"]))
            case _:
                return draw(st.text(st.characters(codec="utf-8", exclude_characters="/\0")))

    kinds = ["value"] * 6 + ["group"] * 2 + ["delete", "new", "flag", "text"]
    return [one(kind) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))]


strays: list[str] = []
watched: list[Path] = []


def _watch(event: str, arguments: tuple) -> None:
    """Note files and folders made outside of the test's own folder."""
    if watched and (
        (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)
        or event in ("os.mkdir", "os.rename")
    ):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        full = os.path.abspath(path)
        ours = full.startswith((str(watched[0]), "/dev/", "/proc/")) or "__pycache__" in full
        ours = ours or "torchinductor" in full  # the compiler's own cache
        if not ours and not full.endswith((".hypothesis", ".hypothesis/last")):
            strays.append(full)


sys.addaudithook(_watch)


@contextmanager
def watching(folder: Path):
    strays.clear()
    watched.append(folder)
    try:
        yield
    finally:
        watched.clear()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with weights and a picture; commands end where their work begins."""

    def checked_training(cfg):
        training.check(cfg)
        training.build_trainer(cfg, [])
        resume.check_resume(cfg)
        make_data(plain(cfg.data))
        training.build_module(cfg, ["a", "b"])
        raise Checked

    def begin(*_, **__):
        raise Checked

    for name in ("evaluate", "predict", "benchmark"):
        monkeypatch.setattr(f"lfvit.commands.{name}.start_run", begin)
    monkeypatch.setattr("lfvit.commands.jobs.train", checked_training)
    monkeypatch.setattr("lfvit.commands.search._open", begin)
    monkeypatch.setattr("lfvit.commands.reproduce.print_plan", begin)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", begin)  # no network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    torch.save(_trained(), "weights.pth")
    photograph((40, 30), 0, 0).save("picture.png")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level  # Hydra sets its own


def _trained() -> dict:
    cfg = compose_config("train", [*SMALL, "backbone.embed_dim=24", "backbone.num_heads=2"])
    module = training.build_module(cfg, make_data(plain(cfg.data)).classes)
    return {"state_dict": module.model.state_dict(), "lfvit": module.record}


def run(script: str, given: list[str]) -> int | None:
    """The exit status of a command, None where all its checks have passed."""
    before = sys.argv
    sys.argv = [str(ROOT / f"{script}.py"), *SCRIPTS[script], *given]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Checked:
        return None
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def check_command(script: str, given: list[str], place: Path, capsys) -> None:
    capsys.readouterr()
    with watching(place):
        status = run(script, given)
    told = capsys.readouterr().err
    assert status in (None, 0, 1, 2)
    assert "Traceback" not in told
    if status == 2:
        assert re.search(r"^error: .|\berror: |usage: ", told, re.M), told
    assert strays == []


def leaves_the_folder(given: list[str]) -> bool:
    """Arguments that name another place for what is written, or code to run."""
    return any(re.search(r"\.\.|^\W*hydra|_target_|_(args|partial)_|=/(?!proc)", a) for a in given)


@pytest.mark.skipif(not SECONDS, reason="takes minutes: make fuzz")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
@fuzz(4, data=st.data())
def test_a_command_line_is_checked_settings_or_one_error(script, place, capsys, data):
    given = data.draw(arguments(script))
    assume(not leaves_the_folder(given))
    check_command(script, given, place, capsys)


@pytest.mark.parametrize(
    ("script", "given"), [("reproduce", "scale=-1"), ("benchmark", "~image_size")]
)
def test_found_command_lines(script, given, place, capsys, monkeypatch):
    """A number for a group was a traceback; OmegaConf's causes made a loop without an end."""
    monkeypatch.setenv("OC_CAUSE", "1")
    with limits(seconds=20):
        assert run(script, [given]) == 2
    assert "error: " in capsys.readouterr().err
