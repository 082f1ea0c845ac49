"""How a command ends: with a result, or with one message that names the fix."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from lfvit.errors import ConfigError
from lfvit.runs import sweeps
from lfvit.runs.configs import help_text, open_groups, positional, quote_path
from lfvit.utils.distributed import (
    all_ended,
    forget_other_launchers,
    is_main_process,
    join_launched,
    launched_together,
)
from lfvit.utils.error_messages import error_message, filter_warnings
from lfvit.utils.signals import Stopped, outlive_output


def entry_point(main: Callable[[], Any]) -> Callable[[], Any]:
    """Print errors a user can mend as one message; everything else keeps its traceback.

    Goes around a function made by ``hydra.main``. Exit status 2 for such errors; 1 where jobs of a
    sweep did not end well; 128 and its number after a signal (`lfvit.utils.signals.Stopped`).
    """

    @wraps(main)
    def run() -> Any:
        outlive_output()
        forget_other_launchers()
        filter_warnings()
        # Hydra would print and swallow every exception itself
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        script = Path(sys.argv[0]).stem
        if {"--help", "-h", "help"} & set(sys.argv[1:]):
            print(help_text(script))
            sys.exit()
        try:
            arguments = positional(script, sys.argv[1:])
            sys.argv[1:] = open_groups([quote_path(argument) for argument in arguments], script)
            try:
                if "hydra.job.chdir=true" in map(str.lower, sys.argv):
                    raise ConfigError(
                        "hydra.job.chdir=true: paths are meant from where the command is typed, "
                        "and every file is written into run_dir; leave it out"
                    )
                join_launched()
                result = main()
                sweeps.raise_failure()
                if launched_together():  # the main process keeps what the others have yet to read
                    all_ended()
            finally:
                well = sweeps.finish()
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
        if not well:
            sys.exit(1)
        return result

    return run


class Terminal(logging.Handler):
    """Log lines on stdout, at once; above a progress bar, which puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"{level}{self.format(record)}", flush=True)
