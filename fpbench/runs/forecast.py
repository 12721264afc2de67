"""What earlier records say a piece of work takes on this machine: better than any estimate."""

import contextlib
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate

from fpbench.errors import InputError
from fpbench.fingerprints import FingerprintSet, find_set
from fpbench.methods.base import FingerprintMethod
from fpbench.models.costs import Work
from fpbench.models.loading import Loading, load_tokenizer
from fpbench.models.meter import no_progress
from fpbench.records.cell import ORIGIN, Cell
from fpbench.records.provenance import machine
from fpbench.records.record import Record
from fpbench.records.store import Store, cell_id, read_records
from fpbench.runs.identity import cell_identity, injection_identity
from fpbench.runs.memory import Needs, by_model, free_card, free_disk, free_memory, needs_of, shown
from fpbench.runs.plan import Job, checkpoints
from fpbench.runs.resume import Resume
from fpbench.runs.sets import Sets
from fpbench.runs.speed import Speed, measured
from fpbench.runs.work import Workload, needs_search
from fpbench.runs.worker import Worker
from fpbench.text import canonical

# Of an identity, what decides how long each kind of work takes, whatever was injected.
DECISIVE = {
    "measured": ("model", "dtype", "condition", "metric", "sizes", "prompt", "metric_data"),
    "modified": ("model", "dtype", "modification"),
    "injected": ("model", "dtype", "method", "hyperparameters", "statistics_tokens"),
}


class Past:
    """Seconds of finished records that this machine measured."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Look at records; those of other machines, or with another number of threads, count for nothing."""
        self._seconds: dict[str, list[float]] = defaultdict(list)
        here = machine()
        for record in records:
            if record.status != "done" or record.identity is None or record.provenance["machine"] != here:
                continue
            identity, cost = record.identity, record.cost
            self._note("measured", identity, cost["seconds"])
            if "modification_seconds" in cost and identity["condition"] != ORIGIN:
                self._note("modified", identity, cost["modification_seconds"])
            if identity["metric"] == "cost":
                result = record.result
                # Statistics are taken once a model, so they are no part of what another injection takes.
                seconds = result["seconds"]["total"] - result["seconds"].get("statistics", 0.0)
                self._note("injected", identity, seconds)

    def seconds(self, kind: str, identity: Mapping[str, Any]) -> float | None:
        """Mean seconds of what is alike; ``None`` if nothing was measured.

        Args:
            kind: ``"measured"``, ``"modified"`` or ``"injected"``.
            identity: of the record to come.
        """
        known = self._seconds.get(_key(kind, identity))
        return fmean(known) if known else None

    def _note(self, kind: str, identity: Mapping[str, Any], seconds: float) -> None:
        self._seconds[_key(kind, identity)].append(seconds)


def _key(kind: str, identity: Mapping[str, Any]) -> str:
    return canonical([kind, {name: identity.get(name) for name in DECISIVE[kind]}])


# What a run will take: from records of this machine where there are some, else from its work and the speed.


# Until torch, transformers, peft, lm-eval and bitsandbytes are imported; measured on one core.
START = 8.0
SET_TOKENS = 2_500  # read to choose a code-mixed set: ten queries in 25 spellings of ten tokens
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One kind of work on one model.

    Attributes:
        model: its label.
        name: what is done.
        times: how often.
        seconds: in all; ``None`` where nobody can know.
        measured: whether this machine has measured all of it before.
    """

    model: str
    name: str
    times: int
    seconds: float | None
    measured: bool


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        cells: how many it has.
        pending: how many of these have no finished record.
        parts: the work that is left; none of models that are not here.
        needs: memory and disk, model by model.
        silent: why nothing is said of a model, by its label.
    """

    cells: int
    pending: int
    parts: tuple[Part, ...]
    needs: tuple[Needs, ...]
    silent: Mapping[str, str]


@dataclass
class _Entry:
    """A piece of work that is left: counted, and what it took before if that is known."""

    name: str
    work: Work | None
    known: float | None = None


@dataclass
class _View:
    """What all models of a job have in common.

    Attributes:
        worker: gives methods and modifications, in a folder that is thrown away.
        store: of the job.
        sets: the sets that are written down.
        past: what this machine measured.
        records: everything that stands in the store.
        identities: of cells whose records may be there already, by path; none where there are no records.
    """

    worker: Worker
    store: Store
    sets: Sets
    past: Past
    records: Sequence[Record]
    identities: dict[str, Identity] = field(default_factory=dict)


def estimate(job: Job, cells: Sequence[Cell], silent: Mapping[str, str]) -> Estimate:
    """Estimate what is left of a run; writes nothing that stays, and reads no weights.

    Args:
        job: with the folders of the models that are here.
        cells: of the whole grid.
        silent: why others are not, by label.
    """
    silent = dict(silent)
    with _looking(job) as view:
        pending = _pending(job, [cell for cell in cells if cell.model in job.folders], view)
        parts: list[Part] = []
        needs: list[Needs] = []
        for label, own in by_model(pending):
            architecture = view.worker.subject(label).architecture
            needs.append(needs_of(label, view.worker, own))
            if reason := needs[-1].short(job.loading.device):
                silent[label] = reason
                continue
            try:
                tokenizer = load_tokenizer(job.folders[label], trust_remote_code=job.loading.trust_remote_code)
                workload = Workload(job.profile, view.worker.datasets, architecture, tokenizer)
                entries = list(_entries(label, own, workload, view))
                longest = workload.longest_row()
            except InputError as error:
                silent[label] = str(error)
                continue
            needs[-1] = needs_of(label, view.worker, own, longest)
            parts += _priced(label, entries, partial(measured, architecture, job.loading))
    away = [cell for cell in cells if cell.model not in job.folders]
    return Estimate(len(cells), len(pending) + len(away), tuple(parts), tuple(needs), silent)


@contextlib.contextmanager
def _looking(job: Job) -> Iterator[_View]:
    """A view on the job that leaves its folder alone."""
    store = Store(job.out)
    with tempfile.TemporaryDirectory() as scratch:
        # What is known of large files is known here, too: nothing is read anew that need not be.
        if (digests := store.folder / "digests.json").is_file():
            shutil.copy(digests, scratch)
        worker = Worker(replace(job, out=Path(scratch)), no_progress)
        records = read_records(store.records) if store.records.is_dir() else []
        yield _View(worker, store, worker.written, Past(records), records)


def _pending(job: Job, cells: Sequence[Cell], view: _View) -> list[Cell]:
    """The cells without a finished record; their identities are computed where there are records at all."""
    pending = Resume(job, view.sets).pending(cells, view.records)
    if not view.records:
        return pending
    left = []
    for cell in pending:
        fingerprints = view.sets.get((cell.fingerprints, cell.seed))
        if fingerprints is not None:
            view.identities[cell.path] = identity = cell_identity(view.worker.subject(cell.model), cell, fingerprints)
            if view.store.find(cell, cell_id(dict(identity))):
                continue
        left.append(cell)
    return left


def _entries(label: str, cells: Sequence[Cell], workload: Workload, view: _View) -> Iterator[_Entry]:
    """Everything that is left to do on one model."""
    profile, subject = workload.profile, view.worker.subject(label)
    metric = cache(workload.metric)
    yield _Entry("load the model", Work(handled=3 * workload.parameters))
    injected: list[FingerprintMethod] = []
    for group in checkpoints(cells):
        first = group[0]
        # A set that is yet to be built for the model has the make of the one that stands in for it.
        fingerprints = view.sets.get((first.fingerprints, first.seed)) or find_set("nlf", profile.sets, first.seed)
        if first.method in profile.methods and not _stored(first, fingerprints, view):
            injected.append(subject.method(first.method))
            yield _Entry(
                f"inject {first.method}",
                workload.injection(injected[-1], fingerprints),
                _known(view, "injected", first, fingerprints),
            )
        for condition, group_cells in groupby(group, key=lambda cell: cell.condition):
            own = list(group_cells)
            slowdown = 1.0
            if condition != ORIGIN:
                modification = subject.modification(condition)
                slowdown = math.prod(part.slowdown for part in modification.parts)
                identity = view.identities.get(own[0].path)
                known = view.past.seconds("modified", identity) if identity else None
                yield _Entry(condition, workload.modification(modification), known)
            for cell in own:
                work = metric(cell.metric, fingerprints) * slowdown
                identity = view.identities.get(cell.path)
                if cell.metric == "cost":  # known once the injection was made
                    continue
                yield _Entry(cell.metric, work, view.past.seconds("measured", identity) if identity else None)
            yield _Entry("restore the weights", Work(handled=2 * workload.parameters))
    yield from _once(label, cells, injected, workload, view)


def _once(
    label: str, cells: Sequence[Cell], injected: Sequence[FingerprintMethod], workload: Workload, view: _View
) -> Iterator[_Entry]:
    """What is done once for a model and kept: statistics, searches, sets."""
    profile, subject = workload.profile, view.worker.subject(label)
    statistics = workload.statistics(injected)
    if statistics != Work() and not any(view.store.statistics.glob("*.safetensors")):
        yield _Entry("key statistics", statistics)
    searches = view.store.folder / "searches"
    data = set()
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        for part in needs_search(subject.modification(condition)):
            if part.source not in data and not any(searches.glob(f"{label}-finetune-{part.source}-*.json")):
                data.add(part.source)
                yield _Entry(f"search the rate of {part.name}", workload.search(part))
    for name, method in dict.fromkeys((cell.fingerprints, cell.method) for cell in cells):
        if profile.searches_rate(method) and not any(searches.glob(f"{label}-{method}-{name}-*.json")):
            fingerprints = view.sets.get((name, profile.seeds[0])) or find_set("nlf", profile.sets)
            work = workload.injection_search(subject.method(method), fingerprints)
            yield _Entry(f"search the rate of {method}", work)
    for name in dict.fromkeys(cell.fingerprints for cell in cells):
        if (name, profile.seeds[0]) not in view.sets:
            yield _Entry(f"build the set {name}", Work(passes=10, read=SET_TOKENS, scored=SET_TOKENS))


def _known(view: _View, kind: str, cell: Cell, fingerprints: FingerprintSet) -> float | None:
    """What an injection like that of ``cell`` took before."""
    if cell.path not in view.identities:
        return None
    subject = view.worker.subject(cell.model)
    return view.past.seconds(kind, injection_identity(subject, cell.method, fingerprints, cell.seed))


def _stored(cell: Cell, fingerprints: FingerprintSet, view: _View) -> bool:
    """Whether the injection of a cell's checkpoint is kept from an earlier run."""
    if cell.path not in view.identities:
        return False
    subject = view.worker.subject(cell.model)
    name = cell_id(injection_identity(subject, cell.method, fingerprints, cell.seed))
    return (view.store.deltas / f"{cell.model}-{cell.fingerprints}-{cell.method}-{cell.seed}-{name}.json").is_file()


def _priced(label: str, entries: Sequence[_Entry], measure: Callable[[], Speed]) -> list[Part]:
    """Entries of one name together, in order of appearance; the machine is measured only if a price is missing."""
    speed = cache(measure)

    def price(entry: _Entry) -> float | None:
        if entry.known is not None:
            return entry.known
        return None if entry.work is None else speed().of(entry.work)

    parts = []
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        known = [seconds for entry in own if (seconds := price(entry)) is not None]
        total = sum(known) if len(known) == len(own) else None
        parts.append(Part(label, name, len(own), total, all(entry.known is not None for entry in own)))
    return parts


# An estimate to read: a table of the work that is left, then time, memory and disk beside what there is.


MEASURED, ESTIMATED, UNKNOWN = "measured before on this machine", "estimated", "unknown"


def forecast(estimate: Estimate, job: Job) -> str:
    """The estimate as plain text."""
    lines = [f"{estimate.cells} cells, {estimate.pending} of them to do."]
    if estimate.parts:
        rows = [(each.model, each.name, each.times, time(each.seconds), _basis(each)) for each in estimate.parts]
        header = ("model", "what", "times", "time", "rests on")
        lines += ["", tabulate(rows, header, tablefmt="github", disable_numparse=True), ""]
    if estimate.pending:
        lines += [_time(estimate), *_memory(estimate, job.loading), _disk(estimate, job)]
    lines += [f"no time for {label}: {reason}" for label, reason in estimate.silent.items()]
    return "\n".join(lines)


def total(estimate: Estimate) -> float:
    """Seconds of everything that is known, the start of the process included."""
    return START + sum(part.seconds or 0.0 for part in estimate.parts)


def time(seconds: float | None) -> str:
    """A duration to read, in two digits or so."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def _basis(part: Part) -> str:
    if part.seconds is None:
        return "nobody but its author knows"
    return MEASURED if part.measured else ESTIMATED


def _time(estimate: Estimate) -> str:
    unknown = sum(part.seconds is None for part in estimate.parts)
    past = sum(part.seconds or 0.0 for part in estimate.parts if part.measured)
    share = past / total(estimate)
    basis = f"{share:.0%} of it {MEASURED}, the rest {ESTIMATED}" if past else ESTIMATED
    missing = f", without {unknown} of unknown cost" if unknown else ""
    absent = ", without the models named below" if estimate.silent else ""
    threads = f"on {torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "on one thread"
    return f"time    {time(total(estimate))} {threads}, other work aside ({basis}){missing}{absent}"


def _memory(estimate: Estimate, loading: Loading) -> list[str]:
    if not estimate.needs:
        return []
    main = max(estimate.needs, key=lambda each: each.main.total).main.total
    card = max(estimate.needs, key=lambda each: each.card.total).card.total
    lines = [_of("memory", main, free_memory())]
    return [*lines, _of("card", card, free_card(loading.device))] if card else lines


def _of(what: str, need: float, free: float) -> str:
    smaller = "; batches that do not fit are tried again in halves" if need > free else ""
    return f"{what:7} {shown(need)} at the peak, of {shown(free)} free ({ESTIMATED}){smaller}"


def _disk(estimate: Estimate, job: Job) -> str:
    disk = sum(each.disk for each in estimate.needs)
    return f"disk    {shown(disk)} in {job.out}, of {shown(free_disk(job.out))} free ({ESTIMATED})"
