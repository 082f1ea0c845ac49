"""What went wrong, in one message that names the fix."""

import re
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lfvit.errors import LFViTError

PARSERS = ("hydra._internal", "hydra.core", "omegaconf")
"""What reads command lines and configs, and finds most mistakes in them."""


def error_message(error: BaseException) -> str | None:
    """The message for an error the user can mend; None for any other, which needs its traceback."""
    own = _cause(error)
    if own is not None:
        return str(own)
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _composing(error):
        return _explain(error)
    return None


def _composing(error: BaseException) -> bool:
    """Whether a plain error comes from Hydra reading the command line, as for scale=-1."""
    frames = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return bool(frames) and frames[-1].startswith(PARSERS)


def _cause(error: BaseException | None) -> LFViTError | None:
    """Our own error, or the one inside one of Hydra's, which wraps what instantiate() raises.

    Or inside a RuntimeError, as which PyTorch reports dead loader processes.
    """
    if isinstance(error, LFViTError):
        return error
    if not isinstance(error, (HydraException, OmegaConfBaseException, RuntimeError)):
        return None
    seen: list[BaseException] = []
    inner = error.__cause__
    while inner is not None and inner not in seen:  # with OC_CAUSE=1, OmegaConf's causes run round
        if isinstance(inner, LFViTError):
            return inner
        seen.append(inner)
        inner = inner.__cause__
    return None


def _explain(error: BaseException) -> str:
    """Hydra's message, with the valid keys where an override names an unknown one."""
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; pass {error.full_key}=..."
    if isinstance(error, OverrideParseException):
        return f'{error.override!r} cannot be read; quote the value: "{_quoted(error.override)}"'
    if isinstance(error, HydraException) and error.__cause__ is not None:
        text += f"\n{error.__cause__}"
    if re.search(r"Could not (find|load) 'hydra/launcher/", text):
        return f"{text}\nthe launchers for sweeps are installed by pip install -e '.[sweep]'"
    match = re.search(r"Could not override '([^']+)'", text)
    if match is None:
        return text
    key = match[1]
    parent, _, leaf = key.rpartition(".")
    valid = _valid_keys(key, parent)
    if not valid:
        return text
    close = get_close_matches(leaf, valid, n=1)
    where = f"{parent} has" if parent else "there is"
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{where} no setting {leaf!r}; {hint}valid: {', '.join(valid)}"


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}='{value}'"


def _valid_keys(key: str, parent: str) -> list[str]:
    """The keys beside the unknown one, from the config composed without it."""
    script = Path(sys.argv[0]).resolve()
    overrides = [a for a in sys.argv[1:] if "=" in a and not re.match(rf"\+*{re.escape(key)}=", a)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(script.parent / "conf"), version_base="1.3"):
            cfg = compose(script.stem, [a for a in overrides if not a.startswith("hydra.")])
    except Exception:  # another override is wrong as well: Hydra's own message will do
        return []
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return sorted(map(str, node)) if isinstance(node, DictConfig) else []
