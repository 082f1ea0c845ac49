"""Overrides as users write them: no plus sign, any path, files by themselves."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from lfvit.errors import ConfigError
from lfvit.runs.configs import (
    CONF,
    check_settings,
    compose_config,
    open_groups,
    positional,
    quote_path,
    valid_options,
)


def test_arguments_of_classes_need_no_plus():
    given = ["trainer.max_steps=5", "callbacks.checkpoint.save_top_k=2", "logger.csv.prefix=a"]
    given += ["optimizer.amsgrad=true", "lr_scheduler.cycle_limit=2"]
    cfg = compose_config("train", given)
    for override in given:
        key, _, value = override.partition("=")
        assert str(OmegaConf.select(cfg, key)).lower() == value


@pytest.mark.parametrize(
    ("override", "chosen"),
    [
        ("method.beta=0.9", "method=lf_vit"),
        ("backbone.mlp_ratio=2", "backbone=vit_micro"),
        ("reducer.weighted_pool=False", "reducer=tome"),
        ("augment.erasing=0.1", "augment=light"),
        ("data.val_images=3", "data=needle"),
        ("schedule.loss=bce", "schedule=pretrained"),
    ],
)
def test_settings_that_an_option_does_not_list_are_set_or_refused_by_their_class(override, chosen):
    cfg = compose_config("train", [chosen, override])
    key, _, value = override.partition("=")
    assert str(OmegaConf.select(cfg, key)) == value
    group = key.partition(".")[0]
    cfg = compose_config("train", [chosen, f"{group}.nosuch=1"])
    with pytest.raises(ConfigError, match=rf"{group}.nosuch is no setting; valid: .*{key[-4:]}"):
        check_settings(cfg)


@pytest.mark.parametrize("group", ["method", "backbone", "reducer", "data"])
def test_groups_of_a_checkpoint_are_open(group):
    override = f"{group}.something=1"
    assert open_groups([override], "evaluate") == [f"++{override}"]
    assert open_groups(["data.root=x"], "predict") == ["data.root=x"]


def test_the_keys_beside_an_unknown_one_are_those_of_the_chosen_option():
    with pytest.raises(ConfigError, match="logger has no setting 'x'; valid: tensorboard$"):
        compose_config("train", ["logger=tensorboard", "logger.x=3"])


def plain_settings_named_like_groups():
    return [
        (path.stem, key)
        for path in sorted(CONF.glob("*.yaml"))
        for key in OmegaConf.load(path)
        if valid_options(str(key))
    ]


@pytest.mark.parametrize(("command", "key"), plain_settings_named_like_groups())
def test_a_setting_named_like_a_group_is_set_or_refused_by_name(command, key):
    override = f"{key}={valid_options(key)[0]}"
    if key == "experiment":
        assert compose_config(command, [override]).experiment.name == valid_options(key)[0]
    else:
        with pytest.raises(ConfigError, match=f"{override} has no effect in {command};"):
            open_groups([override], command)


NAMES = ["C#", "it's", 'in"ch', "x;y", "p&q", "n\u00e9e", "ex!", "lt<gt>", "\u65e5\u672c", "`tick"]
NAMES += ["caret^", "e=mc2", "q(1)", "[1]", "{b}", "back\\", "\\'", "$HOME", "1", "null", "true"]
NAMES += ["1e3", "caf\udce9", "'quoted'", "100%", "a@b", "~x", "*?", "a, b", " space ", "tab\t"]
NAMES += ["line\nbreak"]


def parsed(override):
    """The value of an override as it stands on the command line."""
    (opened,) = open_groups([quote_path(override)])
    value = OverridesParser.create().parse_override(opened).value()
    return value.text if isinstance(value, QuotedString) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_path_may_hold_any_character(tmp_path, monkeypatch, name):
    """As it stands on the command line; another shell's worth of quotes is understood as well."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    quoted = QuotedString(name, Quote.single).with_quotes()
    for value in (name, f"{tmp_path}/{name}", quoted):
        assert parsed(f"data.root={value}") == (name if value == quoted else value)
    if name not in ("a, b", "null", "1", "true"):
        assert parsed(f"hydra.run.dir=new/{name}/run") == f"new/{name}/run"


@pytest.mark.parametrize("key", ["data.root", "run_dir", "ckpt_path", "image"])
def test_a_config_holds_the_path(tmp_path, key):
    path = tmp_path / "/".join(NAMES)
    path.mkdir(parents=True)
    data = ["data=imagefolder"] if key == "data.root" else []
    command = {"ckpt_path": "evaluate", "image": "predict"}.get(key, "train")
    cfg = compose_config(command, [*data, f"{key}={path}"])
    assert OmegaConf.select(cfg, key) == str(path)


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose_config("train", ["run_dir=~/run"]).run_dir == f"{tmp_path}/run"
    assert compose_config("predict", ["image=[~/a#.jpg,b]"]).image == [f"{tmp_path}/a#.jpg", "b"]


@pytest.mark.parametrize(
    "override", ["name={a", "name=[a#", "name=(it's", 'name=["$x`!', "name='it's", "name=a, b"]
)
def test_the_printed_hint_parses_as_it_stands_in_a_shell(override):
    with pytest.raises(ConfigError) as caught:
        compose_config("train", [override])
    message = str(caught.value)
    (hint,) = re.findall(r"quote the value: (.*)|for a list, or (.*) for one value", message)
    hint = "".join(hint)
    (argument,) = shlex.split(hint)
    echoed = subprocess.run(["bash", "-c", f"printf %s {hint}"], capture_output=True, check=True)
    assert echoed.stdout.decode() == argument
    assert compose_config("train", [argument]).name == override.partition("=")[2]


@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [
        ("predict", ["a.jpg"], ["image='a.jpg'"]),
        ("predict", ["a.jpg", "top=1", "it's.jpg"], ["top=1", "image=['a.jpg','it\\'s.jpg']"]),
        ("predict", ["x=1.jpg", "top=1"], ["top=1", "image='x=1.jpg'"]),
        ("evaluate", ["zoo:default", "-m"], ["-m", "ckpt_path='zoo:default'"]),
        (
            "export",
            ["--cfg", "job", "run/last.ckpt"],
            ["--cfg", "job", "ckpt_path='run/last.ckpt'"],
        ),
        ("train", ["~logger", "needle"], ["~logger", "needle"]),
    ],
)
def test_files_may_stand_by_themselves(tmp_path, monkeypatch, script, given, expected):
    monkeypatch.chdir(tmp_path)
    Path("x=1.jpg").touch()
    assert positional(script, given) == expected
