"""What a signal does, and to whom it goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from lfvit.utils.signals import SIGNALS, Stopped, StopSignals, call


@pytest.mark.parametrize("signum", SIGNALS)
def test_outside_of_steps_a_signal_stops_at_once(signum):
    def work():
        with StopSignals():
            os.kill(os.getpid(), signum)
            time.sleep(10)

    before = signal.getsignal(signum)
    with pytest.raises(Stopped, match=signum.name) as caught:
        work()
    assert caught.value.status == 128 + signum
    assert signal.getsignal(signum) == before


def test_a_handler_that_was_there_comes_last():
    """submitit's queues the job again; by then everything has to be saved and closed."""
    order = []

    def train():
        with StopSignals() as stop:
            stop.waiting = True
            os.kill(os.getpid(), signal.SIGUSR2)
            order.append("saved")
            raise Stopped(stop.requested)

    before = signal.signal(signal.SIGUSR2, lambda signum, frame: order.append("requeued"))
    try:
        with pytest.raises(Stopped):
            train()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert order == ["saved", "requeued"]


def test_a_command_is_told_and_waited_for(tmp_path):
    program = f"""
import os, pathlib, signal, time

def told(*_):
    time.sleep(0.2)
    pathlib.Path({str(tmp_path / "told")!r}).touch()
    os._exit(143)

signal.signal(signal.SIGTERM, told)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
"""
    with pytest.raises(Stopped, match="SIGTERM"):
        call([sys.executable, "-c", program])
    assert (tmp_path / "told").exists()
    assert call([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_the_same_signal_again_ends_the_process_at_once():
    program = f"""
import os, runpy, signal, time
names = runpy.run_path({str(ROOT / "src/lfvit/utils/signals.py")!r})
with names["StopSignals"]() as stop:
    stop.waiting = True
    os.kill(os.getpid(), signal.SIGTERM)
    stop._since -= 60
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert done.returncode == -signal.SIGTERM
