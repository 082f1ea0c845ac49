"""Whatever stands on a command line: checked settings, or one clear error."""

import functools
import re

import pytest
import torch
from fuzzing import SECONDS, fuzz, limits
from hypothesis import assume
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conftest import photograph, run_script
from lfvit.commands import train as training
from lfvit.runs import resume
from lfvit.runs.configs import CONF, compose_config, valid_options
from lfvit.runs.datasets import make_data
from lfvit.runs.identity import flatten
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
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


class Checked(BaseException):
    """Every check has passed: the work would begin now."""


@functools.cache
def keys_of(script: str) -> list[str]:
    """The full names of a command's settings."""
    needed = [o for o in SCRIPTS[script] if o.startswith(("ckpt_path", "image="))]
    settings = OmegaConf.to_container(compose_config(script, needed), resolve=False)
    return [key for key in flatten(settings) if not key.startswith(("runs.", "artifact."))]


VALUES = st.one_of(
    st.sampled_from(["-1", "0", "1", "2", "3", "16", "10000000", "0.5", "-0.5", "1e-3", "1e400"]),
    st.sampled_from(["true", "null", "nan", "inf", "auto", "none", "mlp", "ngca", "evit"]),
    st.sampled_from(["weights.pth", "nowhere/x", ".", "/proc/nowhere", "~nobody/x"]),
    st.sampled_from(["[]", "[1,2]", "[0.5,x]", "{a:1}", "{name:evit}", "[[1]]", "'a b'", "1,2"]),
    st.sampled_from(["${seed}", "${nothing}", "${", "???", "choice(1,2)", "range(3)", "a=b"]),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=8),
)


def argument(script: str) -> st.SearchStrategy[str]:
    """An override of a real setting or group, an invented one, or what is no override."""
    keys = st.sampled_from(keys_of(script))
    groups = st.sampled_from(GROUPS).flatmap(
        lambda group: st.sampled_from([*valid_options(group), "other", "null"]).map(
            lambda option: f"{group}={option}"
        )
    )
    values = st.builds("{}{}={}".format, st.sampled_from(["", "", "+", "++"]), keys, VALUES)
    return st.one_of(
        *(values, values, values, groups),
        st.builds("~{}".format, keys),
        st.builds("+{}.new={}".format, keys, VALUES),
        st.sampled_from(["-m", "--cfg=job", "--resolve", "-x", "--help", "--"]),
        st.text(st.characters(codec="utf-8", exclude_characters="/\0")),
    )


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
    cfg = compose_config("train", [*SMALL, "backbone.embed_dim=24", "backbone.num_heads=2"])
    module = training.build_module(cfg, make_data(plain(cfg.data)).classes)
    torch.save({"state_dict": module.model.state_dict(), "lfvit": module.record}, "weights.pth")
    photograph((40, 30), 0, 0).save("picture.png")


def run(script: str, given: list[str]) -> int | None:
    """The exit status of a command, None where all its checks have passed."""
    try:
        return run_script(script, *SCRIPTS[script], *given)
    except Checked:
        return None


@pytest.mark.skipif(not SECONDS, reason="takes minutes: make fuzz")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
@fuzz(4, data=st.data())
def test_a_command_line_is_checked_settings_or_one_error(script, place, capsys, data):
    given = data.draw(st.lists(argument(script), min_size=1, max_size=3))
    # no other place for what is written, and no code to run
    other_places = r"\.\.|^\W*hydra|_target_|_(args|partial)_|=/(?!proc)"
    assume(not any(re.search(other_places, each) for each in given))
    capsys.readouterr()
    status = run(script, given)
    printed = capsys.readouterr().err
    assert status in (None, 0, 1, 2)
    assert "Traceback" not in printed
    if status == 2:
        assert re.search(r"^error: .|\berror: |usage: ", printed, re.M), printed


@pytest.mark.parametrize(
    ("script", "given"), [("reproduce", "scale=-1"), ("benchmark", "~image_size")]
)
def test_found_command_lines(script, given, place, capsys, monkeypatch):
    """A number for a group was a traceback; OmegaConf's causes made a loop without an end."""
    monkeypatch.setenv("OC_CAUSE", "1")
    with limits():
        assert run(script, [given]) == 2
    assert "error: " in capsys.readouterr().err
