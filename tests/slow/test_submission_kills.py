"""A run of a submission, whose parent and whose child's processes are killed thirty times."""

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
from tests.runs.grids import SHORT, write_tiny
from tests.submissions.hostile import DAEMON, NAME, WEAK, write

pytestmark = pytest.mark.slow
KILLS = 30
TOP = f"import time\n{DAEMON}\nif daemon():\n    time.sleep(600)"


def test_a_submission_killed_thirty_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(MODEL)
    require_confinement()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANG", mark := f"mark-{os.getpid()}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    write(Path("submissions") / NAME, TOP, f"{WEAK}\ntime.sleep(1)")
    profile = write_tiny(tmp_path / "tiny.toml", SHORT)
    words = ["--profile", str(profile), "--method", NAME, "--out"]
    begin = time.monotonic()
    assert subprocess.run([*COMMAND, *words, "undisturbed"], capture_output=True).returncode == 0
    longest = time.monotonic() - begin
    draw, killed = random.Random(42), {"parent": 0, "child": 0}
    while sum(killed.values()) < KILLS:
        run = start([*words, "killed"])
        time.sleep(draw.uniform(0.2, 0.9) * longest)
        parts = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        if run.poll() is not None:  # it finished before that
            shutil.rmtree("killed")
        elif parts and killed["child"] < KILLS / 2:
            try:
                draw.choice(parts).kill()
                killed["child"] += 1
            except psutil.Error:
                pass
            _, said = run.communicate()
            assert run.returncode in (0, 1), said.decode()
            shutil.rmtree("killed/deltas", ignore_errors=True)  # the next one injects again
        elif killed["parent"] < KILLS / 2:
            run.kill()
            run.communicate()
            assert run.returncode == -signal.SIGKILL
            killed["parent"] += 1
        else:
            run.kill()
            run.communicate()
        assert gone(mark)
    print(f"\nkilled: {killed}")
    assert subprocess.run([*COMMAND, *words, "killed"], capture_output=True).returncode == 0
    assert gone(mark)
    assert [path.name for path in (tmp_path / "tmp").iterdir() if "fpbench" in path.name] == []
    assert table(Path("killed")) == table(Path("undisturbed"))
