"""What the tests of the Ray engine share: a grid of seconds, what must be equal, and how to lose a worker."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from fpbench.models.loading import Loading
from fpbench.records.cell import Cell
from fpbench.records.store import Store
from fpbench.runs.api import measure
from fpbench.runs.engine import Engine, Watch
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile


class Lines(Watch):
    """Says a line for every measured cell, and whatever an engine says."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say  # type: ignore[method-assign]
        self.planned, self.done = 0, 0

    def begin(self, store: Store, planned: Sequence[Cell], finished: Sequence[Cell]) -> None:
        self.planned = len(planned)

    def measured(self, cell: Cell, failure: str | None) -> None:
        self.done += 1
        self.say(f"{cell}{f' failed: {failure}' if failure else ''} ({self.done}/{self.planned} cells)")


def run(profile: Path, out: Path, engine: Engine, say: Callable[[str], None]) -> list[Any]:
    """Run a profile on the CPU."""
    wanted = load_profile(str(profile))
    return measure(Job.of(wanted, Loading("cpu"), out), plan(wanted), Lines(say), engine)


def records(out: Path) -> dict[str, Any]:
    """What every engine must agree on: records without provenance, cost and checksum, and per-query results."""
    found: dict[str, Any] = {}
    for path in sorted((out / "records").rglob("*.json*")):
        name = str(path.relative_to(out))
        if path.suffix == ".jsonl":
            found[name] = path.read_text()
            continue
        record = json.loads(path.read_text())
        for key in ("provenance", "cost", "checksum", *(["result"] if path.stem == "cost" else [])):
            record.pop(key, None)
        found[name] = record
    return found


def board(out: Path) -> str:
    """``leaderboard.json`` without its cost and provenance fields."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(each) for key, each in value.items() if key not in ("cost", "provenance")}
        return [without(each) for each in value] if isinstance(value, list) else value

    return json.dumps(without(json.loads((out / "leaderboard.json").read_text())))


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every record, by its path."""
    found = {}
    for path in (out / "records").rglob("*.json"):
        at = path.stat()
        found[str(path)] = at.st_ino, at.st_mtime_ns
    return found


def workers() -> list[psutil.Process]:
    """The processes that measure for this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::RayWorker.measure"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(process: psutil.Process) -> None:
    """As the kernel does when memory runs out."""
    process.send_signal(signal.SIGKILL)
