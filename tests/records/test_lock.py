"""One driver a store, one maker an artefact: real processes, real locks."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fpbench.errors import InputError
from fpbench.records.store import driving, making

HOLD = """
import sys, time
from pathlib import Path
from fpbench.records.store import driving, making
with {lock}:
    print("held", flush=True)
    time.sleep({seconds})
"""
DRIVING, MAKING = "driving(Path(sys.argv[1]))", "making(Path(sys.argv[1]), 'set.jsonl')"


@contextmanager
def holder(lock, folder, seconds=600):
    code = HOLD.format(lock=lock, seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_driver_is_told_host_and_process_of_the_first(tmp_path):
    with holder(DRIVING, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        whose = f"process {first.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=whose), driving(tmp_path):
            pass


def test_the_lock_of_a_killed_driver_is_taken_over(tmp_path):
    with holder(DRIVING, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
        with driving(tmp_path):
            assert str(os.getpid()) in (tmp_path / "locks" / "driver.json").read_text()


def test_a_finished_driver_leaves_the_folder_free(tmp_path):
    for _ in range(2):
        with driving(tmp_path):
            pass


def test_a_maker_waits_until_the_other_is_done(tmp_path):
    with holder(MAKING, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with holder(MAKING, tmp_path, seconds=0) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=2)
            first.kill()
            assert second.communicate(timeout=60)[0] == "held\n"
    with making(tmp_path, "another"), making(tmp_path, "set.jsonl"):
        pass
