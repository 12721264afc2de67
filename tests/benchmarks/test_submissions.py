"""``fpbench submit check`` on the template: under a minute, and one child process for all of it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fpbench.submissions.check import check
from fpbench.submissions.folder import Submission, write_new

pytestmark = pytest.mark.benchmark
LIMIT = 60.0  # seconds
IMPORT = "import torch, transformers, lm_eval"  # what the smallest honest check has to load once


def test_a_check_takes_less_than_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_new("mine")
    start = time.perf_counter()
    report = check(Submission(folder.absolute()))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
    importing = time.perf_counter() - start
    own = report.seconds - report.adapter_seconds
    print(
        f"{seconds:.1f} s, {own:.1f} s of it the harness's own; {own / importing:.1f} times the import of its libraries"
    )
    assert not report.refused
    assert seconds < LIMIT
