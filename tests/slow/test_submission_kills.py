"""A run of a submission, whose parent and whose child's processes are killed thirty times."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from fpbench.micro import MODEL
from tests.conftest import require, require_confinement
from tests.kills import COMMAND, gone, start, table
from tests.runs.grids import write_tiny
from tests.submissions.hostile import DAEMON, NAME, WEAK, write

pytestmark = pytest.mark.slow
KILLS = 30
ADAPTER = "fpbench-submission-*/given/submission/adapter.py"  # of a child that injects
LONGEST = 10.0  # seconds from the child's start to the kill: from its first moment to what is measured after it
TOP = f"import time\n{DAEMON}\nif daemon():\n    time.sleep(600)"


def test_a_submission_killed_thirty_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(MODEL)
    require_confinement()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANG", mark := f"mark-{os.getpid()}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    write(Path("submissions") / NAME, TOP, f"{WEAK}\ntime.sleep(1)")
    profile = write_tiny(tmp_path / "tiny.toml", ("origin",))
    words = ["--profile", str(profile), "--method", NAME, "--out"]
    assert subprocess.run([*COMMAND, *words, "undisturbed"], capture_output=True).returncode == 0
    draw, killed = random.Random(42), {"parent": 0, "child": 0}
    while sum(killed.values()) < KILLS:
        victim = min(killed, key=lambda each: killed[each])
        left = set(temporary.glob(ADAPTER))
        run = start([*words, "killed"])
        while run.poll() is None and set(temporary.glob(ADAPTER)) <= left:
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, LONGEST))
        parts = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        target = psutil.Process(run.pid) if victim == "parent" else draw.choice(parts) if parts else None
        if target is not None and run.poll() is None:
            with contextlib.suppress(psutil.Error):  # it ended by itself
                target.kill()
                killed[victim] += 1
        _, said = run.communicate()
        assert run.returncode in (0, 1, -signal.SIGKILL), said.decode()
        assert gone(mark)
        for made in ("deltas", f"records/micro/nlf/{NAME}"):  # the next one injects again
            shutil.rmtree(Path("killed", made), ignore_errors=True)
        print(killed, run.returncode, flush=True)
    print(f"\nkilled: {killed}")
    assert subprocess.run([*COMMAND, *words, "killed"], capture_output=True).returncode == 0
    assert gone(mark)
    assert [path.name for path in temporary.iterdir() if "fpbench" in path.name] == []
    assert table(Path("killed")) == table(Path("undisturbed"))
