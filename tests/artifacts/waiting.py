"""What a process of a run does in a test; imports nothing that takes time."""

import signal
import time


def work(run, *_):
    """Wait for a signal, and say so."""

    def told(*_):
        (run.folder / "told").touch()
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, told)
    (run.folder / "started").touch()
    time.sleep(60)
