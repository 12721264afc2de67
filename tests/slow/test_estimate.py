"""What a dry run says against what then happens, on a cut of the micro profile; other work on the machine spoils it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

pytestmark = pytest.mark.slow

CUT = ["--method", "lora", "mcedit_a", "--condition", "origin", "finetune_alpaca", "ria30"]
ESTIMATE = """
import json, sys
from pathlib import Path
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.runs.forecast import estimate
from fpbench.runs.forecast import forecast, total
from fpbench.runs.plan import Job
from fpbench.runs.plan import plan
from fpbench.runs.profile import load_profile

profile = load_profile("micro", methods=["lora", "mcedit_a"], conditions=["origin", "finetune_alpaca", "ria30"])
job = Job(profile, {"micro": MODEL}, Loading("cpu"), Path(sys.argv[1]))
found = estimate(job, plan(profile), {})
print(forecast(found, job), file=sys.stderr)
print(json.dumps([total(found), found.needs[0].main.total, found.needs[0].disk]))
"""
RUN = """
import json, resource, sys
from fpbench.cli import main

code = main(["run", "--engine", "serial", *sys.argv[1:]])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([1024 * usage.ru_maxrss, usage.ru_utime + usage.ru_stime]))
sys.exit(code)
"""


def last_line(code: str, arguments: list[str], threads: int) -> list[float]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in other units there")
@pytest.mark.parametrize("threads", [1, 2])
def test_time_within_a_factor_of_two_and_memory_within_30_percent(tmp_path: Path, threads: int) -> None:
    if threads > (os.cpu_count() or 1):
        pytest.skip(f"needs {threads} cores")
    out = tmp_path / "run"
    seconds, memory, disk = last_line(ESTIMATE, [str(out)], threads)
    assert not out.exists()
    start = perf_counter()
    taken, busy = last_line(RUN, [*CUT, "--out", str(out)], threads)
    happened = perf_counter() - start
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(
        f"\n{threads} threads: {seconds:.0f} s expected, {happened:.0f} s happened ({seconds / happened:.2f}), "
        f"{busy:.0f} s of a core; "
        f"{memory / 2**20:.0f} MiB, {taken / 2**20:.0f} MiB ({memory / taken:.2f}); "
        f"{disk / 2**20:.0f} MiB, {written / 2**20:.0f} MiB on disk ({disk / written:.2f})"
    )
    assert happened / 2 <= seconds <= 2 * happened
    assert 0.7 * taken <= memory <= 1.3 * taken
    assert written / 2 <= disk <= 2 * written
