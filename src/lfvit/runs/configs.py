"""Overrides as users write them, configs composed from them, and their check."""

import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lfvit.errors import ConfigError, UnknownSettingError
from lfvit.utils.error_messages import error_message
from lfvit.utils.paths import CONF, program
from lfvit.utils.validation import Settings, plain, suggest, validate

ON_CHECKPOINTS = ("evaluate", "predict", "diagnose", "benchmark", "export", "demo")
"""Commands whose groups replace what a checkpoint says, and hold nothing by themselves."""

PARSER = OverridesParser.create()
OF_NAMES = {"search": "space", "benchmark": "models"}
"""Settings of commands in which any name is new."""

PATH = re.compile(r"(^|[.+_])(dir|root|path|files|image|init_from|teacher|reuse|label_maps)$")
"""Names of settings that hold paths."""


def open_groups(overrides: Sequence[str], command: str = "train") -> list[str]:
    """Overrides in which settings that the chosen option of a group does not list need no ``+``.

    ``backbone.mlp_ratio=2`` becomes ``++backbone.mlp_ratio=2``; likewise arguments of the trainer,
    and of a callback or logger by its name; search's space and benchmark's models; in commands on
    checkpoints what replaces a setting of the method, backbone, reducer or data. Unknown names are
    refused by the class that the settings are for, see `lfvit.utils.validation`.

    ``logger=null``, which Hydra's grammar for groups does not know, leaves the group out. A plain
    setting named like a group of conf, such as search's experiment, is set as any other.

    Args:
        overrides: as on the command line.
        command: name of the primary config.
    """
    groups = ["trainer", "optimizer", "lr_scheduler", r"(callbacks|logger)\.\w+"]
    if command == "train" or command in ON_CHECKPOINTS:
        groups += ["method", "backbone", "reducer"]
    if command == "train":
        groups += ["augment", "schedule"]
    if command in ("train", "evaluate", "diagnose", "benchmark"):
        groups.append("data")
    if command in OF_NAMES:
        groups.append(OF_NAMES[command])
    opened = re.compile(rf"({'|'.join(groups)})\.[^=]*=")
    return [
        f"++{override}" if opened.match(override) else _plain_setting(override, command)
        for override in overrides
    ]


def _plain_setting(override: str, command: str) -> str:
    """An override of a setting named like a group of conf, which Hydra would take for the group.

    ``GROUP=null`` as Hydra reads it. Others as they are.

    Raises:
        ConfigError: an option of a group that the command does not have.
    """
    key, _, value = override.partition("=")
    options = valid_options(key)
    config: Any = _primary(command) if options else {}
    if key in config:
        settings = config[key] or {}
        if "name" in settings:
            return f"{key}.name={value}"
        names = ", ".join(f"{key}.{name}" for name in settings)
        raise ConfigError(f"{override} has no effect in {command}; valid: {names or 'none'}")
    if value != "null" or not options:
        return override
    return f"{key}=none" if "none" in options else f"~{key}"


@cache
def _primary(command: str) -> Any:
    return OmegaConf.load(CONF / f"{command}.yaml")


def valid_options(group: str) -> list[str]:
    """The options of a group of conf; none where there is no such group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []


def help_text(command: str) -> str:
    """What ``--help`` shows: the explained settings of the primary config, and every group."""
    text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\bpython (\w+)\.py\b", lambda match: program(match[1]), text)
    usage, _, rest = text.partition("defaults:\n")
    chosen = re.findall(r"^  - (\w+): (.+?) *(?:#|$)", rest, re.MULTILINE)
    settings = re.sub(r"^  - .*\n", "", rest, flags=re.MULTILINE).partition("\nhydra:\n")[0]
    groups = [
        f"  {group}={default}".ljust(26) + f" of {', '.join(valid_options(group))}"
        for group, default in chosen
        if group != "hydra"
    ]
    return (
        f"usage: {program(command)} [GROUP=OPTION ...] [SETTING=VALUE ...]\n\n"
        + re.sub(r"^# ?", "", usage, flags=re.MULTILINE)
        + "\nGroups, and what is taken by itself (null: as in the checkpoint, or none):\n"
        * bool(groups)
        + "\n".join(groups)
        + "\n" * bool(groups)
        + "\nSettings (those of groups stand in conf/GROUP/OPTION.yaml):\n"
        + "".join(f"  {line}\n" if line else "" for line in settings.strip().split("\n"))
        + f"\n{program(command)} --cfg job shows all of them as composed; hydra.run.dir=DIR says "
        "where to write; --config-dir DIR adds configs of your own.\n"
    )


def positional(command: str, arguments: Sequence[str]) -> list[str]:
    """Arguments in which files that stand by themselves have the name of their setting.

    ``predict.py a.jpg b.jpg`` becomes ``predict.py image=['a.jpg','b.jpg']``; a command on
    checkpoints takes one.
    """
    key = "image" if command == "predict" else "ckpt_path" if command in ON_CHECKPOINTS else None
    files, others = list[str](), list[str]()
    for before, argument in zip(["", *arguments], arguments, strict=False):
        exists = os.path.lexists(argument)
        if (
            key is None
            or argument[:1] in ("-", "~")
            or (before[:1] == "-" and before not in ("-m", "--multirun", "--resolve"))
            or ("=" in argument and not exists)
        ):
            others.append(argument)
        else:
            files.append(argument)
    if len(files) > 1 and key == "ckpt_path":
        raise ConfigError(f"{command} takes one checkpoint, not {len(files)}: {', '.join(files)}")
    if len(files) == 1:
        others.append(f"{key}={_quoted(files[0])}")
    elif files:
        others.append(f"{key}=[{','.join(map(_quoted, files))}]")
    return others


def quote_path(override: str) -> str:
    """The override as Hydra's grammar reads it, where it would not be read, or as something else.

    A value that cannot be parsed is taken as it stands, so that paths may hold any character, and
    ``~`` is the home directory. So is an existing path that would be read as a number, a choice or
    without its spaces. What begins with a bracket or quote and is no path is left to Hydra.
    """
    key, equals, value = override.partition("=")
    if key[:2] == "--":  # an option of Hydra
        return override
    try:
        parsed = PARSER.parse_override(override).value()
        if not PATH.search(key) or parsed == value:
            return override
        literal = os.path.lexists(value)
    except HydraException:
        if value[:1] in ("'", '"') and value[-1:] == value[:1]:  # as Lightning quotes hydra.run.dir
            value, literal = value[1:-1], True
        elif value[:1] == "[" and value[-1:] == "]" and not os.path.lexists(value):
            items = (quote_path(f"{key}={item}") for item in value[1:-1].split(","))
            value = ",".join(item.partition("=")[2] for item in items)
            return f"{key}=[{value}]"
        else:
            value = os.path.expanduser(value)
            literal = value[:1] not in ("'", '"', "[", "{", "(") or os.path.lexists(value)
    return f"{key}={_quoted(value)}" if equals and literal else override


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def compose_config(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a command, as the command line would compose it from these overrides.

    Raises:
        ConfigError: one that cannot be read, or names no setting.
    """
    prepared = open_groups([quote_path(override) for override in overrides], command)
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(command, prepared)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(command, prepared)
    except HydraException as error:
        raise ConfigError(error_message(error, (command, prepared)) or str(error)) from error


def check_settings(cfg: DictConfig, command: str = "train") -> None:
    """Refuse settings that cannot work, before PyTorch is imported.

    Args:
        cfg: a composed config.
        command: what it is for.

    Raises:
        ConfigError: names the setting, its value and what would be valid.
    """
    if command == "train":
        from lfvit.data.settings import check_data
        from lfvit.models.settings import check_model
        from lfvit.training.settings import check_training

        for group in ("method", "backbone", "data", "schedule"):
            if group not in cfg:
                options = ", ".join(valid_options(group))
                raise ConfigError(f"{group}=null: a training needs one, of {options}")
        check_training(cfg)
        check_data(plain(cfg.data))
        method, backbone = plain(cfg.method), plain(cfg.backbone)
        check_model(
            method.pop("name"),
            backbone=backbone.get("timm", backbone),
            reducer=plain(cfg.reducer),
            options=method,
            image_size=cfg.image_size,
        )
    else:
        from lfvit.measure import settings

        schemas: dict[str, type[Settings]] = {
            "evaluate": settings.EvaluationSettings,
            "diagnose": settings.DiagnosisSettings,
            "benchmark": settings.BenchmarkSettings,
            "predict": settings.PredictionSettings,
            "demo": settings.DemoSettings,
        }
        schema = schemas[command]
        validate(schema, {key: plain(cfg[key]) for key in schema.model_fields if key in cfg})
        known: Any = OmegaConf.load(CONF / f"{command}.yaml")
        valid = {*known, *(group for entry in known.defaults[1:] for group in entry)}
        valid -= {"defaults", "hydra"}
        for key in map(str, cfg.keys() - valid):
            raise ConfigError(f"{key} is no setting of {command}; {suggest(key, sorted(valid))}")


def check_names(cfg: DictConfig) -> None:
    """Refuse names that are no settings of a training; whether its values fit is left to it.

    Raises:
        UnknownSettingError: names the first, and those that are.
    """
    try:
        check_settings(cfg)
    except UnknownSettingError:
        raise
    except ConfigError:
        pass
