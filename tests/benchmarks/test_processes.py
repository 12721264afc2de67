"""Three methods on the micro model in two processes of one thread, against one process of two threads: on quiet cores.

Predicted: passes of the micro model take milliseconds, of which two threads save a third; two processes save half, less
the second start and what the last one to end waits for: 1.3 times in all.
"""

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]
CUT = ["--method", "mcedit_a", "alphaedit", "fpedit", "--condition", "origin", "suppress@3", "finetune_alpaca", "ria30"]


def seconds(out: Path, *options: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "fpbench", "run", *CUT, *options, "--quiet", "--out", str(out)]
    start = perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return perf_counter() - start


def test_two_processes_against_two_threads(tmp_path: Path) -> None:
    threads, processes = seconds(tmp_path / "one", "--engine", "serial"), seconds(tmp_path / "two", "--processes", "2")
    print(f"\ntwo threads {threads:.0f} s, two processes {processes:.0f} s: {threads / processes:.2f} times as fast")
    assert threads / processes > 1.2
