"""The command line: ``lfvit COMMAND ...``, which ``python COMMAND.py ...`` in a checkout also is.

A command ends with a result, or with one message that names the fix.
"""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import hydra
from omegaconf import DictConfig

from lfvit import __version__
from lfvit.errors import ConfigError
from lfvit.runs import sweeps
from lfvit.runs.configs import (
    CONF,
    check_settings,
    help_text,
    open_groups,
    positional,
    quote_path,
)
from lfvit.utils.distributed import (
    all_ended,
    forget_other_launchers,
    is_main_process,
    join_launched,
    launched_together,
)
from lfvit.utils.error_messages import error_message, filter_warnings
from lfvit.utils.signals import Stopped, outlive_output
from lfvit.utils.validation import suggest

CONFIGURED = {
    "train": "train a model",
    "evaluate": "accuracy and cost of a checkpoint, its curve and operating points",
    "predict": "classify photographs, and draw where the second pass looked",
    "demo": "a page to try a model in the browser",
    "benchmark": "images per second of models",
    "export": "a checkpoint as ONNX files",
    "diagnose": "where a checkpoint loses accuracy",
    "search": "find settings by trying them",
    "reproduce": "the tables and figures of the papers",
}
"""Commands composed from conf/NAME.yaml by Hydra; their code is `lfvit.commands.NAME`."""

OTHERS = {
    "report": ("commands.report", "finished runs as one table or page"),
    "zoo": ("results.zoo", "list the trained models, or add one"),
    "dashboard": ("tracking.dashboard", "a W&B report on the runs of a project"),
}
"""Commands with options of their own -> the module whose `main` takes them."""

CHECKED = ("train", "evaluate", "predict", "demo", "benchmark", "diagnose")


def main(command: str | None = None) -> Any:
    """The console entry; a script of the checkout passes the name of its command."""
    arguments = sys.argv[1:]
    if command is None:
        command, *arguments = arguments or ["--help"]
    if command in ("--help", "-h", "help"):
        print("usage: lfvit COMMAND ...; lfvit COMMAND --help explains one\n")
        for name, text in {**CONFIGURED, **{k: v[1] for k, v in OTHERS.items()}}.items():
            print(f"  {name:<10} {text}")
    elif command == "--version":
        print(f"lfvit {__version__}")
    elif command in OTHERS:
        return with_messages(_import_and_run)(OTHERS[command][0], arguments)
    elif command in CONFIGURED:
        return with_messages(_compose_and_run)(command, arguments)
    else:
        hint = suggest(command, [*CONFIGURED, *OTHERS])
        print(f"error: lfvit has no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)


def run_command(command: str, cfg: DictConfig) -> float | None:
    """Check a composed config, then do what the command says; PyTorch is imported in between."""
    if command in CHECKED:
        check_settings(cfg, command)
    if command == "train":
        job = _load("commands.jobs").run(cfg)
        return job.metrics.get("val/top1")  # what a sweeper that searches maximizes
    getattr(_load(f"commands.{command}"), command)(cfg)
    return None


def _load(name: str) -> ModuleType:
    """Import one of our modules, and with it PyTorch; no garbage is looked for among all that."""
    if (module := sys.modules.get(f"lfvit.{name}")) is not None:
        return module
    gc.disable()
    try:
        return import_module(f"lfvit.{name}")
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # bindings report what Python then does not take down
        atexit.register(gc.disable)  # which it does anyway


def _import_and_run(module: str, arguments: Sequence[str]) -> None:
    _load(module).main(arguments)


def _compose_and_run(command: str, arguments: Sequence[str]) -> None:
    forget_other_launchers()
    # Hydra would print and swallow every exception itself
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if {"--help", "-h", "help"} & set(arguments):
        print(help_text(command))
        return
    typed = sys.argv
    try:
        arguments = [quote_path(argument) for argument in positional(command, arguments)]
        if "hydra.job.chdir=true" in map(str.lower, arguments):
            raise ConfigError(
                "hydra.job.chdir=true: paths are meant from where the command is typed, "
                "and every file is written into run_dir; leave it out"
            )
        own = [f"hydra.job.name={command}", *join_launched(command)]
        prepared = open_groups(arguments, command)
        overrides = (i for i, a in enumerate(prepared) if "=" in a and a[0] != "-")
        start = next(overrides, len(prepared))  # argparse wants overrides beside each other
        sys.argv = [typed[0], *prepared[:start], *own, *prepared[start:]]

        def task(cfg: DictConfig) -> float | None:
            sys.argv = typed  # Lightning starts its processes with them, records show them
            return run_command(command, cfg)

        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(task)()
        sweeps.raise_failure()
        if launched_together():  # the main process keeps what the others have yet to read
            all_ended()
    finally:
        sys.argv = typed
        well = sweeps.finish()
    if not well:
        sys.exit(1)


def with_messages(run: Callable[..., Any]) -> Callable[..., Any]:
    """Print errors a user can mend as one message; everything else keeps its traceback.

    Exit status 2 for such errors; 1 where jobs of a sweep did not end well; 128 and its number
    after a signal (`lfvit.utils.signals.Stopped`).
    """

    @wraps(run)
    def answered(*arguments: Any) -> Any:
        outlive_output()
        filter_warnings()
        try:
            return run(*arguments)
        except Stopped as stopped:
            if is_main_process():
                print(f"\n{stopped}", file=sys.stderr)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            message = error_message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return answered


class Terminal(logging.Handler):
    """Log lines on stdout, at once; above a progress bar, which puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"{level}{self.format(record)}", flush=True)
