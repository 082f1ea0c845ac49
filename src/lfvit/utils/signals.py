"""Signals that end a training at a place it can go on from, and output that may be lost."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: pre-emption, `kill`, torchrun. SIGINT: Ctrl-C. SIGHUP: a closed terminal. SIGUSR1 and
SIGUSR2: SLURM's notice."""

TOGETHER = 2.0  # seconds in which several signals are one request: Ctrl-C comes by several ways
WORKERS_STAY = 600  # seconds that loader processes outlast a signal: as long as a validation


class Stopped(BaseException):
    """A signal has ended the training; what was saved before can be continued.

    Like KeyboardInterrupt no Exception: a sweep does not go on with its next job.

    Attributes:
        signal: the one that came.
        status: the exit status; by default 128 and the signal's number, as in shells.
        hint: how to go on.
    """

    def __init__(self, signum: int, hint: str = "", status: int | None = None) -> None:
        super().__init__(signum, hint, status)
        self.signal = signal.Signals(signum)
        self.hint = hint
        self.status = 128 + signum if status is None else status

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}{self.hint}"


class StopSignals:
    """While it is entered, signals stop a training in an orderly way.

    The first one is kept in `requested`. Where `waiting` is set, somebody asks for it at the end of
    every step; elsewhere there is nothing to wait for, and `Stopped` is raised at once. The same
    signal again, seconds later, ends the process on the spot.

    A handler that was there before, such as submitit's, which queues a SLURM job again, gets its
    signal when everything is saved and closed.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.waiting = False
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            if self._before[signal.SIGHUP] == signal.SIG_IGN:  # nohup
                del self._before[signal.SIGHUP]
            self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(error, Stopped):
            handler = self._before.get(error.signal)
            if callable(handler) and handler is not signal.default_int_handler:
                handler(error.signal, None)

    def install(self) -> None:
        """Take the signals, also from Lightning, whose handlers come in between.

        Lightning's would broadcast from inside the handler, and on SLURM save a second checkpoint.
        """
        for signum in self._before:
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        forked = os.getpid() != self._pid  # a child without handlers of its own
        again = self.requested == signum and time.monotonic() - self._since > TOGETHER
        if again or forked:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if self.requested is None:
            self.requested, self._since = signal.Signals(signum), time.monotonic()
            if not self.waiting:
                raise Stopped(signum)


def call(command: Sequence[str]) -> int:
    """Run a command and return its exit status; a signal goes on to it, and its end is waited for.

    Raises:
        Stopped: there was a signal.
    """
    with StopSignals(), subprocess.Popen(command) as process:
        try:
            return process.wait()
        except Stopped:
            process.terminate()
            process.wait()
            raise


def outlive_signals(worker: int) -> None:
    """For loader processes: a signal to the whole group must not take them before the last step.

    They end with the process they work for; an alarm ends those that hang.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda *_: signal.alarm(WORKERS_STAY))


class _Lossy(io.FileIO):
    """A file descriptor whose reader may have gone: what cannot be written is left out."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_output() -> None:
    """Let the command go on where its output cannot be written: a closed pipe or terminal, a full
    disk, characters that the encoding of the terminal does not have.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # others are not a file descriptor: notebooks, tests
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            lossy: Any = _Lossy(stream.fileno(), "wb", closefd=False)
            text = io.TextIOWrapper(
                lossy if stream.write_through else io.BufferedWriter(lossy),  # python -u
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, text)
