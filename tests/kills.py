"""Kill a run again and again at seeded moments, then let it finish."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "fpbench", "run"]


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


def storm(arguments: list[str], out: Path, kills: int, longest: float, seed: int = 42) -> list[int]:
    """SIGKILL a run ``kills`` times, then run it to its end; returns how many files were finished at each kill.

    What was finished at a kill must be there, untouched, ever after.
    """
    draw, counts = random.Random(seed), []
    known: dict[Path, tuple[bytes, int]] = {}
    while len(counts) < kills:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(draw.uniform(0.5, longest))
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended by itself: {said.decode()}"
        now = finished(out)
        assert known.items() <= now.items(), "a finished cell was computed twice, or lost"
        known = now
        counts.append(len(known))
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
