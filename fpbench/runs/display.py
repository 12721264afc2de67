"""What a run shows while it measures: a bar on a terminal or in a notebook, else a line with a clock a checkpoint."""

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from fpbench.records.cell import ORIGIN, Cell
from fpbench.records.store import Store, read_record
from fpbench.runs.engine import Watch, title

PLACE = ("model", "fingerprints", "method", "seed")  # of a checkpoint
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

    _known: dict[tuple[str, ...], tuple[float, int]] = field(default_factory=dict)  # their sum, and how many

    def add(self, cell: Cell, seconds: float) -> None:
        """Note that a cell took so long, modification and injection included."""
        for key in self._keys(cell):
            total, count = self._known.get(key, (0.0, 0))
            self._known[key] = total + seconds, count + 1

    def left(self, cells: Iterable[Cell]) -> float | None:
        """Return the seconds that cells will take, by the mean of those most like each; ``None`` if some are new."""
        found = [next((self._known[key] for key in self._keys(cell) if key in self._known), None) for cell in cells]
        return None if None in found else sum(each[0] / each[1] for each in found if each)

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
        self._measured = 0

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
                    self._stop()

    def _started(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                transient=True,
                redirect_stdout=False,  # which the table of results goes to
            )
            self._bars.start()
        return self._bars

    # A run.

    def begin(self, store: Store, planned: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """Say how much is finished, and show the bar of the whole run."""
        self._store, self._planned, self._finished = store, list(planned), set(finished)
        self._before = {cell: self._written(cell) for cell in finished}
        self._varied = [name for name in PLACE if len({getattr(cell, name) for cell in planned}) > 1]
        if len(self._finished) < len(planned):
            self.say(self._count() if self._finished else f"{len(planned)} cells to measure")
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
        if cell not in self._before or self._written(cell) != self._before[cell]:  # else it was found, not measured
            self._times.add(cell, now - found.last)
            self._measured += 1
            found.measured += 1
        found.last = now
        if failure:
            found.failed += 1
            self.say(f"{cell} failed: {failure}")
        self._finished.add(cell)
        if not found.cells:
            self._active.pop(_key(cell), None)
            if found.measured:
                self.say(self._result(cell, found))
        self._update()

    def say(self, line: str) -> None:
        """Print a line with the time of day, above the bar if there is one."""
        self.console.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"), soft_wrap=True)

    def end(self) -> None:
        """Take the bars away; say so if there was nothing to do."""
        self._stop()
        if not self._measured and len(self._finished) == len(self._planned):
            self.say(f"{self._count()}, nothing to do")

    def _written(self, cell: Cell) -> int:
        path = self._store.record_path(cell)
        return path.stat().st_mtime_ns if path.exists() else 0

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._overall = None

    def _count(self) -> str:
        return f"{len(self._finished)} of {len(self._planned)} cells finished"

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
        next_cells = [each.cells[0] for each in self._active.values() if each.cells]
        now = [" · ".join(str(getattr(cell, name)) for name in [*self._varied, "condition"]) for cell in next_cells]
        self._bars.update(self._overall, description="\n".join(now), completed=len(self._finished), left=self._left())

    def _left(self) -> str:
        left = [cell for cell in self._planned if cell not in self._finished]
        seconds = self._times.left(left)
        return f"about {_clock(seconds / max(1, len(self._active)))} left" if seconds else ""


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(getattr(cell, name) for name in PLACE)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
