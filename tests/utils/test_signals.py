"""What a signal does, and to whom it goes on; output that is lost."""

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

    ignored = signal.getsignal(signum) == signal.SIG_IGN  # SIGHUP under nohup
    before = signal.signal(signum, signal.SIG_DFL) if ignored else signal.getsignal(signum)
    expected = signal.getsignal(signum)
    with pytest.raises(Stopped, match=signum.name) as caught:
        work()
    assert caught.value.status == 128 + signum
    assert signal.getsignal(signum) == expected
    signal.signal(signum, before)


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


def test_a_closed_terminal_does_not_stop_what_nohup_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("output", ["pipe", "full disk", "closed terminal", "ascii"])
def test_output_that_cannot_be_written_ends_nothing(tmp_path, output, unbuffered):
    program = f"""
import logging, sys, warnings
from lfvit.utils.signals import outlive_output
outlive_output()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
for _ in range(3000):
    print("caf\\udce9 \\u2022 \\u03b7")
    logging.info("\\u2022")
warnings.warn("\\u2022")
open({str(tmp_path / "done")!r}, "w").close()
"""
    if output == "full disk":
        read, write = None, os.open("/dev/full", os.O_WRONLY)
    elif output == "closed terminal":
        read, write = os.openpty()
    else:
        read, write = os.pipe()
    if read is not None and output != "ascii":
        os.close(read)
    if output == "ascii":
        write = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=write,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()
    if output == "ascii":
        assert (tmp_path / "out").read_text().startswith("caf\\udce9 \\u2022 \\u03b7\n")
