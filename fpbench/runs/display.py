"""What a run shows while it measures: a bar on a terminal or in a notebook, else a line with a clock a checkpoint."""

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from fpbench.records.cell import ORIGIN, Cell
from fpbench.records.store import Store, read_record
from fpbench.runs.engine import Watch, title

DELAY = 2.0  # seconds that a part of the work takes before it gets a bar of its own


def lines_to_stderr() -> Console:
    """Return a console on standard error that breaks no line where nobody looks, and colours nothing."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)


@dataclass
class _Checkpoint:
    """The cells of a checkpoint that are left, and when the last one was finished."""

    cells: list[Cell]
    begun: float
    last: float
    measured: int = 0
    failed: int = 0


@dataclass
class Times:
    """Seconds that cells took, from which those of cells that are left follow."""

    _known: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def add(self, cell: Cell, seconds: float) -> None:
        """Note that a cell took so long, modification and injection included."""
        for key in self._keys(cell):
            self._known.setdefault(key, []).append(seconds)

    def left(self, cells: Iterable[Cell]) -> float | None:
        """Return the seconds that cells will take, by the mean of those most like each; ``None`` if some are new."""
        found = [next((self._known[key] for key in self._keys(cell) if key in self._known), None) for cell in cells]
        return None if None in found else sum(fmean(each) for each in found if each)

    @staticmethod
    def _keys(cell: Cell) -> list[tuple[str, ...]]:
        return [(cell.model, cell.condition, cell.metric), (cell.model, cell.metric)]


class Display(Watch):
    """Shows a run on standard error, while it is in use as a context; also single bars of other work."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self.console = lines_to_stderr()
        self.live = self.console.is_terminal or self.console.is_jupyter
        self._bars: Progress | None = None
        self._overall: TaskID | None = None
        self._active: dict[tuple[Any, ...], _Checkpoint] = {}
        self._times = Times()

    # One part of the work.

    def bar(self, iterable: Iterable[Any], label: str) -> Iterator[Any]:
        """Iterate; show a bar on a terminal or in a notebook as soon as that takes longer than two seconds."""
        total = len(iterable) if isinstance(iterable, Sized) else None
        begun, task = time.monotonic(), None
        own = self._bars is None
        try:
            for number, each in enumerate(iterable):
                if task is None and self.live and time.monotonic() - begun > DELAY:
                    task = self._started().add_task(label, total=total, left="")
                if task is not None:
                    self._started().update(task, completed=number)
                yield each
        finally:
            if task is not None and self._bars is not None:
                self._bars.remove_task(task)
                if own:
                    self.end()

    def _started(self) -> Progress:
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console, transient=True)
            self._bars.start()
        return self._bars

    # A run.

    def begin(self, store: Store, planned: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """Say how much is finished, and show the bar of the whole run."""
        self._store, self._planned, self._finished = store, list(planned), set(finished)
        done = f"{len(self._finished)} of {len(planned)} cells finished"
        if len(self._finished) == len(planned):
            self.say(f"{done}, nothing to do")
            return
        self.say(f"{done}" if self._finished else f"{len(planned)} cells to measure")
        if self.live:
            bars = self._started()
            self._overall = bars.add_task("starting", total=len(planned), completed=len(self._finished), left="")

    def measuring(self, checkpoint: Sequence[Cell]) -> None:
        """Show what is measured now."""
        now = time.monotonic()
        self._active[_key(checkpoint[0])] = _Checkpoint(list(checkpoint), now, now)
        self._update()

    def measured(self, cell: Cell, failure: str | None) -> None:
        """Move the bar; say what came out once a checkpoint is finished."""
        now = time.monotonic()
        found = self._active.get(_key(cell)) or _Checkpoint([cell], now, now)
        if cell in found.cells:
            found.cells.remove(cell)
        if cell not in self._finished:
            self._times.add(cell, now - found.last)
            found.measured += 1
        found.last = now
        if failure:
            found.failed += 1
            self.say(f"{cell} failed: {failure}")
        self._finished.add(cell)
        if not found.cells:
            self._active.pop(_key(cell), None)
            self.say(self._result(cell, found))
        self._update()

    def say(self, line: str) -> None:
        """Print a line with the time of day, above the bar if there is one."""
        self.console.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"), soft_wrap=True)

    def end(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._overall = None

    def _result(self, cell: Cell, checkpoint: _Checkpoint) -> str:
        record = read_record(self._store.record_path(replace(cell, condition=ORIGIN, metric="fsr")))
        result = (record or {}).get("result")
        fsr = f"FSR {100 * result['mean']:.1f} %, " if result else ""
        failed = f", {checkpoint.failed} failed" if checkpoint.failed else ""
        taken = f"{checkpoint.measured} cells in {_clock(checkpoint.last - checkpoint.begun)}{failed}"
        left = self._left()
        return f"{title(cell)}: {fsr}{taken} ({len(self._finished)}/{len(self._planned)}{f', {left}' if left else ''})"

    def _update(self) -> None:
        if self._bars is None or self._overall is None:
            return
        now = [f"{title(each.cells[0])} · {each.cells[0].condition}" for each in self._active.values() if each.cells]
        self._bars.update(self._overall, description="\n".join(now), completed=len(self._finished), left=self._left())

    def _left(self) -> str:
        left = [cell for cell in self._planned if cell not in self._finished]
        seconds = self._times.left(left)
        return f"about {_clock(seconds / max(1, len(self._active)))} left" if seconds else ""


def _key(cell: Cell) -> tuple[Any, ...]:
    return cell.model, cell.fingerprints, cell.method, cell.seed


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
