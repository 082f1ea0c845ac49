"""Overrides as users write them, configs composed from them, and their check."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from lfvit.errors import ConfigError
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.utils.validation import plain, validate

CONF = PROJECT_ROOT / "conf"
ON_CHECKPOINTS = ("evaluate", "predict", "diagnose", "benchmark", "export")
"""Commands whose groups replace what a checkpoint says, and hold nothing by themselves."""


def open_groups(overrides: Sequence[str], command: str = "train") -> list[str]:
    """Overrides in which arguments of the classes that conf names need no ``+``.

    ``trainer.max_steps=5`` becomes ``++trainer.max_steps=5``; likewise arguments of a callback or
    logger by its name, of the optimizer, of lr_scheduler and of data.dataset, and backbone.timm. In
    commands on checkpoints also what replaces a setting of the method, backbone, reducer or data.
    The class itself refuses unknown names, see `lfvit.utils.validation.instantiate`.

    ``logger=null``, which Hydra's grammar for groups does not know, leaves the group out.

    Args:
        overrides: as on the command line.
        command: name of the primary config.
    """
    groups = [
        r"trainer\.",
        r"optimizer\.",
        r"lr_scheduler\.",
        r"data\.dataset\.",
        r"backbone\.timm",
    ]
    groups.append(r"(callbacks|logger)\.\w+\.")
    if command == "search":
        groups.append(r"space\.")
    if command in ON_CHECKPOINTS:
        groups += [r"method\.", r"backbone\.", r"reducer\.", r"data\."]
    opened = re.compile(f"({'|'.join(groups)})[^=]*=")
    return [
        f"++{override}" if opened.match(override) else _without_group(override)
        for override in overrides
    ]


def _without_group(override: str) -> str:
    """``GROUP=null`` as Hydra reads it; others as they are."""
    group = override.removesuffix("=null")
    if group == override or not (options := valid_options(group)):
        return override
    return f"{group}=none" if "none" in options else f"~{group}"


def valid_options(group: str) -> list[str]:
    """The options of a group of conf; none where there is no such group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []


def quote_path(override: str) -> str:
    """Quote an override whose value is an existing path that Hydra's grammar would not read."""
    key, equals, value = override.partition("=")
    plain = value[:1] in ("'", '"', "[", "{") or not re.search(r"[=,()\[\]{}\s:]", value)
    if not equals or plain or not Path(value).expanduser().exists():
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def compose_config(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a command, as its script would compose it from these overrides."""
    prepared = open_groups([quote_path(override) for override in overrides], command)
    if GlobalHydra.instance().is_initialized():
        return compose(command, prepared)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, prepared)


def check_settings(cfg: DictConfig, command: str = "train") -> None:
    """Refuse settings that cannot work, before PyTorch is imported.

    Args:
        cfg: a composed config.
        command: the script it is for.

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

        schema = {
            "evaluate": settings.EvaluationSettings,
            "diagnose": settings.DiagnosisSettings,
            "benchmark": settings.BenchmarkSettings,
            "predict": settings.PredictionSettings,
        }[command]
        validate(schema, {key: plain(cfg[key]) for key in schema.model_fields if key in cfg})
