"""Kill a run again and again, then let it finish."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from fpbench.cli import main

COMMAND = [sys.executable, "-m", "fpbench", "run"]
Run = subprocess.Popen[bytes]


def start(arguments: list[str]) -> Run:
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def marked(mark: str) -> list[psutil.Process]:
    """Processes with ``LANG`` set to a mark, which a submission's processes inherit, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("LANG") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(mark: str, seconds: float = 10.0) -> bool:
    """Whether the last of these processes ends in time."""
    end = time.monotonic() + seconds
    while left := marked(mark):
        if time.monotonic() > end:
            print(*left, sep="\n")
            return False
        time.sleep(0.1)
    return True


def finished(out: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of change of every record of a finished cell, and of its per-query results."""
    found = {}
    for path in (out / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        if record["status"] == "done":
            for each in (path, path.with_suffix(".jsonl")):
                if each.exists():
                    found[each] = each.read_bytes(), each.stat().st_mtime_ns
    return found


def after_records(out: Path, count: int) -> Callable[[Run], None]:
    """Return a wait until so many records are there, or the run has ended."""

    def wait(process: Run) -> None:
        while process.poll() is None and len(list((out / "records").rglob("*.json"))) < count:
            time.sleep(0.02)

    return wait


def at_random(kills: int, longest: float, seed: int = 42) -> Iterator[Callable[[Run], None]]:
    """Yield waits of seeded lengths, in seconds."""
    draw = random.Random(seed)
    for _ in range(kills):
        yield lambda process: time.sleep(draw.uniform(0.5, longest))


def storm(arguments: list[str], out: Path, waits: Iterable[Callable[[Run], None]]) -> list[int]:
    """SIGKILL a run after each of ``waits``, then run it to its end; return how many files were finished at each kill.

    What was finished at a kill must be there, untouched, ever after.
    """
    counts = []
    known: dict[Path, tuple[bytes, int]] = {}
    for wait in waits:
        process = start(arguments)
        wait(process)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended by itself: {said.decode()}"
        now = finished(out)
        assert known.items() <= now.items(), "a finished cell was computed twice, or lost"
        known = now
        counts.append(len(known))
    assert main(["run", *arguments]) == 0
    assert known.items() <= finished(out).items()
    assert not [path for path in out.rglob(".*")], "something half-written is left"
    return counts


def table(out: Path) -> str:
    """``leaderboard.json`` without what differs from run to run: cost and provenance."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(each) for each in value]
        if isinstance(value, dict):
            return {key: bare(each) for key, each in value.items() if key not in ("cost", "provenance")}
        return value

    return json.dumps(bare(json.loads((out / "leaderboard.json").read_text())), sort_keys=True)
