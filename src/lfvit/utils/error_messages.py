"""What went wrong, in one message that names the fix; and what libraries say beside it, hidden."""

import logging
import re
import shlex
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lfvit.errors import LFViTError
from lfvit.utils.extras import missing_extra
from lfvit.utils.paths import CONF, typed
from lfvit.utils.validation import suggest

REMARKS = (
    r".*torch\.jit\.\w+. is deprecated",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*exists and is not empty",
    r".*smaller than the logging interval",
    r".*does not have many workers",
    r".*lr_scheduler\.step\(\)",
    r".*predict returned None",  # a process without an image in its last batch
    r".*use `self\.log\('train/images_per_second'",
)
"""Warnings of the libraries to their own developers, which would bury what a command has to say."""

PARSERS = ("hydra._internal", "hydra.core", "omegaconf")
"""What reads command lines and configs, and finds most mistakes in them."""


def filter_warnings() -> None:
    """Hide `REMARKS` in this process."""
    for message in REMARKS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


@contextmanager
def only_warnings(*names: str) -> Iterator[None]:
    """Hide what these loggers say for information."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def error_message(
    error: BaseException, line: tuple[str, Sequence[str]] | None = None
) -> str | None:
    """The message for an error the user can mend; None for any other, which needs its traceback.

    line: the command that was composed and its overrides; None are those that were typed.
    """
    parsing = isinstance(error, (HydraException, OmegaConfBaseException))
    # a RuntimeError is how PyTorch reports dead loader processes
    mendable = parsing or isinstance(error, (LFViTError, RuntimeError, ImportError))
    for cause in _causes(error) if mendable else []:
        if isinstance(cause, LFViTError):
            return str(cause)
        if isinstance(cause, ImportError) and (message := missing_extra(cause)):
            return message
    if not parsing:  # a plain error of Hydra reading the command line, as for scale=-1
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        parsing = bool(frames) and frames[-1].f_globals.get("__name__", "").startswith(PARSERS)
    if isinstance(error, OSError) and error.filename and _made_by_hydra(error):
        return f"{error.filename} cannot be made: {error.strerror}; pass another hydra.run.dir"
    return _config_message(error, line or typed()) if parsing else None


def _made_by_hydra(error: OSError) -> bool:
    """Whether the error came up before the command had begun: Hydra makes its directory first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "") for frame in frames]
    last = max((i for i, name in enumerate(names) if name.startswith("hydra")), default=len(names))
    return names[last + 1 :] != [] and not any("lfvit" in n for n in names[last:])


def _causes(error: BaseException) -> list[BaseException]:
    """The error and its causes, which run in a circle with OC_CAUSE=1."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    return causes


def _config_message(error: BaseException, line: tuple[str, Sequence[str]]) -> str:
    """Hydra's message, with the valid keys where an override names an unknown one."""
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; pass {error.full_key}=..."
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.options:
        name = str(error.missing_cfg_file)
        text = f"Could not find {name!r}; {suggest(name.rpartition('/')[2], error.options)}"
    elif isinstance(error, HydraException) and error.__cause__ is not None:
        text += f"\n{error.__cause__}"
    if re.search(r"Could not (find|load) 'hydra/launcher/", text):
        return f"{text}\nthe launchers for sweeps are installed by pip install 'lfvit[sweep]'"
    if match := re.search(r"Ambiguous value for argument '(.*?)'\n1", text, re.DOTALL):
        key, _, value = match[1].partition("=")
        return (
            f"{match[1]!r} are several values; pass -m for a run of each, "
            f"{_shell(f'{key}=[{value}]')} for a list, or {_quoted(match[1])} for one value"
        )
    match = re.search(r"Could not override '([^']+)'", text)
    if not match:
        return text
    unknown = match[1]
    while unknown and not (valid := _keys_beside(unknown, *line)):
        unknown = unknown.rpartition(".")[0]
    if not unknown:
        return text
    parent, _, leaf = unknown.rpartition(".")
    text = f"{f'{parent} has' if parent else 'there is'} no setting {leaf!r}; "
    if "overrides" in valid:  # of search.py and reproduce.py
        text += f"of every training: 'overrides=[\"{match[1]}=VALUE\"]'; "
    return text + suggest(leaf, valid)


def _unreadable(override: str) -> str:
    """The message for an override that Hydra's grammar cannot read."""
    if "=" not in override:
        return f"{override!r} is no setting; pass NAME=VALUE, and see --help for the names"
    return f"{override!r} cannot be read; quote the value: {_quoted(override)}"


def _quoted(override: str) -> str:
    """An override whose value is one text, as it is typed in a shell."""
    key, _, value = override.partition("=")
    return _shell(f"{key}={QuotedString(value, Quote.single).with_quotes()}")


def _shell(text: str) -> str:
    return shlex.quote(text) if set('"$`\\!') & set(text) else f'"{text}"'


def _keys_beside(key: str, command: str, arguments: Sequence[str]) -> list[str]:
    """The keys beside an unknown one, from the config composed without it."""
    parent = key.rpartition(".")[0]
    names = [(a, a.partition("=")[0].lstrip("+")) for a in arguments if "=" in a]
    beside = f"{parent}." if parent else f"{key}."  # where others may be unknown as well
    others = [a for a, name in names if name != key and not name.startswith((f"{key}.", beside))]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(command, [a for a in others if not a.startswith("hydra.")])
    except Exception:  # another override is wrong as well: Hydra's own message will do
        return []
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return sorted(map(str, node)) if isinstance(node, DictConfig) else []
