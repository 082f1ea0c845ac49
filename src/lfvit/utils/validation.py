"""Settings, typed once: pydantic checks them, and one message names the setting and the fix.

Each package declares its settings as a subclass of `Settings` in a module that imports no PyTorch,
so that a mistake on the command line is answered at once.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lfvit.errors import ConfigError, UnknownSettingError


def plain(cfg: Any) -> Any:
    """A config as plain dicts, lists and values, interpolations resolved."""
    if isinstance(cfg, (dict, str, int, float, list, type(None))):
        return cfg
    from omegaconf import OmegaConf  # models are built without it and Hydra

    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


class Settings(BaseModel):
    """A group of settings. Unknown names, and values of another type, are refused.

    Numbers are not made from text, and whole numbers not from fractions; ``5`` is a valid float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


OneOrList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
"""Of a list that may be given as the one value in it."""

S = TypeVar("S", bound=BaseModel)


def validate(schema: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Build `schema` from plain values.

    Args:
        schema: a pydantic model, see `Settings`.
        values: plain values by name, such as a group of a config.
        where: the group's name, put before the names in messages, such as "augment".

    Raises:
        UnknownSettingError: names the first that is no setting, and those that are.
        ConfigError: names the first setting at fault, its value and what would be valid.
    """
    try:
        return schema(**values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        raise UnknownSettingError(_message(unknown[0], schema, where))
    raise ConfigError(_message(faults[0], schema, where))


def _message(fault: Any, schema: type[BaseModel], where: str) -> str:
    path = ".".join(str(part) for part in (*([where] if where else []), *fault["loc"]))
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        names = _names_at(schema, fault["loc"][:-1])
        return f"{path} is no setting; {suggest(str(fault['loc'][-1]), names)}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "literal_error":
        return f"{path}={value!r} is unknown; valid: {fault['ctx']['expected']}"
    if kind == "list_type":
        return f"{path}={value!r} is not valid: it must be a list, such as {path}=[{value}]"
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not fault["loc"]:  # a rule about several settings, which names them itself
        return reason
    return f"{path}={value!r} is not valid: {reason}"


def _names_at(schema: Any, path: Iterable[str | int]) -> list[str]:
    """Field names of the model at a path of fields."""
    for part in path:
        field = getattr(schema, "model_fields", {}).get(part)
        if field is None:
            return []
        candidates = (field.annotation, *get_args(field.annotation))
        schema = next((t for t in candidates if hasattr(t, "model_fields")), None)
    return sorted(getattr(schema, "model_fields", {}))


def instantiate(where: str, settings: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate` with one message for an argument that the class does not have.

    Args:
        where: the group's name, put before the names in messages, such as "optimizer".
        settings: with ``_target_``; interpolations resolved.
        args, kwargs: further arguments.

    Raises:
        ConfigError: no such class, an unknown argument or one that is missing.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_method
    from hydra.utils import instantiate as hydra_instantiate

    target = settings.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{where} names no class; set {where}._target_")
    try:
        accepted: Mapping[str, Any] = inspect.signature(get_method(target)).parameters
    except ImportError as error:
        raise ConfigError(f"{where}._target_={target}: {error}") from error
    except ValueError:  # no Python signature
        accepted = {}
    unknown = [name for name in settings if name[0] != "_" and name not in accepted]
    if unknown and accepted and "**" not in str(list(accepted.values())[-1]):
        raise ConfigError(f"{where} has no setting {unknown[0]!r}; {suggest(unknown[0], accepted)}")
    try:
        return hydra_instantiate(settings, *args, **{"_convert_": "all", **kwargs})
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, TypeError):  # such as a missing argument
            raise ConfigError(f"{where}: {cause}") from error
        raise


def suggest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest valid one, and all of them."""
    valid = list(valid)
    closest = difflib.get_close_matches(name, map(str, valid), n=1)
    hint = f"did you mean {closest[0]}? " if closest else ""
    return f"{hint}valid: {', '.join(map(str, valid)) or 'none'}"


def check_choice(name: str, value: Any, valid: Iterable[str]) -> None:
    """Refuse a name that is not among the valid ones.

    Raises:
        ConfigError: with the closest valid name.
    """
    valid = list(valid)
    if value not in valid:
        raise ConfigError(f"{name}={value!r} is unknown; {suggest(str(value), valid)}")
