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


def meet(run, *_):
    """Wait for another run to be under way, and succeed if it is."""
    (run.folder / "started").touch()
    ends = time.monotonic() + 60
    while not (run.folder.parent / run.meets / "started").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    met = (run.folder.parent / run.meets / "started").exists()
    run.result.write_text(f'{{"met": {str(met).lower()}}}')
