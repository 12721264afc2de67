"""Trackio or Weights & Biases: a run sends them the figures of each cell as soon as its record is there."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fpbench.errors import InputError
from fpbench.records.cell import Cell
from fpbench.records.store import Store, read_record
from fpbench.registry import unknown
from fpbench.runs.engine import Watch
from fpbench.runs.profile import Profile

TRACKERS = ("trackio", "wandb")  # packages with the same init, log and finish
PROJECT = "fpbench"
# What stands beside the figures: names and sizes alone, no trigger, target or path.
SAID = ("name", "methods", "conditions", "seeds", "prompt", "limit")


class Tracked(Watch):
    """Tells another watch everything, and a tracker the figures of cells that are finished.

    Figures are called ``model/set/method/seed-42/condition/metric/…`` as in the record; texts are not sent. Where the
    tracker fails during a run, that is said once and the run goes on: its records are what counts.
    """

    def __init__(self, shown: Watch, tracker: str, profile: Profile) -> None:
        """Send nothing yet; :class:`InputError` for an unknown tracker, or one that is not installed."""
        if tracker not in TRACKERS:
            raise unknown("tracker", tracker, list(TRACKERS))
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"--track {tracker} needs the package {tracker}: pip install 'fpbench[{tracker}]'.")
        self._shown, self._name = shown, tracker
        self._service: Any = None  # the package, while a run of its is open
        sets = [profile.set_label(each) for each in profile.fingerprints]
        self._config = {name: getattr(profile, name) for name in SAID} | {
            "models": [each.label for each in profile.models], "fingerprints": sets,
        }  # fmt: skip

    def bar(self, iterable: Iterable[Any], label: str) -> Iterable[Any]:
        """Iterate, as it is shown."""
        return self._shown.bar(iterable, label)

    def begin(self, store: Store, planned: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """Open a run of the tracker if there is anything to measure; :class:`InputError` if it cannot be opened."""
        self._store = store
        if len(finished) < len(planned):
            with _printing_to_stderr():
                try:
                    service = importlib.import_module(self._name)
                    service.init(project=PROJECT, config=self._config)
                except Exception as error:  # whatever a package of others raises
                    raise InputError(f"--track {self._name} cannot begin: {_line(error)}") from None
            self._service = service
        self._shown.begin(store, planned, finished)

    def measuring(self, checkpoint: Sequence[Cell]) -> None:
        """Note what is measured now, as it is shown."""
        self._shown.measuring(checkpoint)

    def measured(self, cell: Cell, failure: str | None) -> None:
        """Send what the record of a cell holds, unless it failed."""
        self._shown.measured(cell, failure)
        record = read_record(self._store.record_path(cell))
        if record is not None and record["status"] == "done":
            figures = dict(_numbers(cell.path, record["result"]))
            self._send("log", figures | {f"{cell.path}/seconds": record["cost"]["seconds"]})

    def say(self, line: str) -> None:
        """Note anything else, as it is shown."""
        self._shown.say(line)

    def end(self) -> None:
        """Close the tracker's run."""
        self._shown.end()
        self._send("finish")

    def _send(self, what: str, *given: Any) -> None:
        if self._service is None:
            return
        with _printing_to_stderr():
            try:
                getattr(self._service, what)(*given)
            except Exception as error:  # whatever a package of others raises
                self._service = None
                self.say(f"{self._name} gets nothing more of this run: {_line(error)}")


def _numbers(place: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers inside a result by their place; of lists, which are intervals, none."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _numbers(f"{place}/{name}", inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Keep standard output for the table of results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
