"""How a command ends: with a result, or with one message that names the fix."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lfvit.errors import LFViTError

# Remarks of the libraries to their own developers, which would bury what a command has to say.
for _message in (
    r".*torch\.jit\.\w+. is deprecated",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*exists and is not empty",
    r".*smaller than the logging interval",
    r".*does not have many workers",
    r".*lr_scheduler\.step\(\)",
):
    warnings.filterwarnings("ignore", message=_message)
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def entry_point(main: Callable[[], Any]) -> Callable[[], Any]:
    """Print errors a user can mend as one message; everything else keeps its traceback.

    Goes around a function made by ``hydra.main``. Exit status 2 for such errors.
    """

    @wraps(main)
    def run() -> Any:
        # Hydra would print and swallow every exception itself
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]
        try:
            return main()
        except LFViTError as error:
            _stop(str(error))
        except (HydraException, OmegaConfBaseException) as error:
            own = _cause(error)
            _stop(str(own) if own else _explain(error))
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)

    return run


def quote_path(argument: str) -> str:
    """Quote an override whose value is an existing path that Hydra's grammar would not read."""
    key, equals, value = argument.partition("=")
    plain = value[:1] in ("'", '"', "[", "{") or not re.search(r"[=,()\[\]{}\s:]", value)
    if not equals or plain or not Path(value).expanduser().exists():
        return argument
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _cause(error: BaseException | None) -> LFViTError | None:
    """Our own error inside one of Hydra's, which wraps what instantiate() raises."""
    while error is not None and not isinstance(error, LFViTError):
        error = error.__cause__
    return error


def _explain(error: Exception) -> str:
    """Hydra's message, with the valid keys where an override names an unknown one."""
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; pass {error.full_key}=..."
    if isinstance(error, OverrideParseException):
        return f'{error.override!r} cannot be read; quote the value: "{_quoted(error.override)}"'
    if isinstance(error, HydraException) and error.__cause__ is not None:
        text += f"\n{error.__cause__}"
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
