"""Forecast of a run: time, from records of this machine or else from work and speed; memory and disk."""

import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate

from fpbench.adversaries.conditions import AT, curves, name_of, weights_parts
from fpbench.errors import InputError
from fpbench.fingerprints import FingerprintSet, find_set
from fpbench.methods.base import FingerprintMethod
from fpbench.models.checkpoints import shape_of
from fpbench.models.costs import Work
from fpbench.models.loading import load_tokenizer
from fpbench.models.meter import no_progress
from fpbench.modifications.base import Composition, Modification
from fpbench.records.cell import ORIGIN, Cell
from fpbench.records.provenance import machine
from fpbench.records.record import Record, cell_id
from fpbench.records.store import Store, read_records
from fpbench.runs.bench import alike, of_base_alone
from fpbench.runs.identity import cell_identity, delta_name, injection_identity
from fpbench.runs.memory import Footprint, Needs, by_model, free_card, free_disk, free_memory, needs_of, shown
from fpbench.runs.plan import Job, checkpoints
from fpbench.runs.processes import Share, limited_threads, one_process
from fpbench.runs.profile import Profile
from fpbench.runs.resume import Resume
from fpbench.runs.speed import CARD, Rate, Speed, count_speed, measure_rate, measure_speed
from fpbench.runs.subject import Subject
from fpbench.runs.unread import RoughTokenizer, with_stand_ins
from fpbench.runs.work import Workload, needs_search
from fpbench.runs.worker import Worker
from fpbench.text import canonical

# Of an identity, what decides how long each kind of work takes, whatever was injected.
DECISIVE = {
    "measured": ("model", "dtype", "condition", "metric", "sizes", "prompt", "metric_data"),
    "modified": ("model", "dtype", "modification"),
    "injected": ("model", "dtype", "method", "hyperparameters", "statistics_tokens"),
}
START = 8.0  # seconds until torch, transformers, peft, lm-eval and bitsandbytes are imported; measured on one core
SET_TOKENS = 2_500  # read to choose a code-mixed set: ten queries in 25 spellings of ten tokens
MEASURED, ESTIMATED, UNKNOWN = "measured before on this machine", "estimated", "unknown"


@dataclass(frozen=True)
class Part:
    """One kind of work on one model."""

    model: str
    name: str
    times: int
    seconds: float | None  # of all times; None where they are unknown
    measured: bool  # whether this machine has measured all of it before


@dataclass(frozen=True)
class Estimate:
    """The work that is left of a run, and its memory and disk."""

    cells: int
    pending: int  # of the cells, those without a finished record
    parts: tuple[Part, ...]  # the work that is left; none of models in ``unknown``
    needs: tuple[Needs, ...]  # memory and disk, model by model
    unknown: Mapping[str, str]  # why there is no estimate of time for a model, by its label
    share: Share  # of the machine
    downloads: Mapping[str, float]  # bytes of the weights of models that are not here, as far as their shape is known
    stood_in: Sequence[str] = ()  # data sets that are not here, counted by the usual lengths of their texts
    rate: Rate | None = None  # of the device, where the speed of some model is counted from it
    on_card: float | None = None  # seconds of everything on a card (:data:`~fpbench.runs.speed.CARD`), if counted


def estimate(
    job: Job,
    cells: Sequence[Cell],
    absent: Mapping[str, str],
    share: Callable[[Worker, Sequence[Sequence[Cell]]], Share] = one_process,
) -> Estimate:
    """Estimate what is left of a run, reading no weights.

    Args:
        job: the run.
        cells: of the run.
        absent: why models are not in the job, by label; what those whose shape is bundled will take is counted.
        share: tells how many processes and threads will measure.
    """
    here = [cell for cell in cells if cell.model in job.folders]
    shapes = {label: found for label in absent if (found := shape_of(job.settings(label).path))}
    job = replace(job, folders=dict(job.folders) | shapes)
    with tempfile.TemporaryDirectory() as scratch:
        worker = Worker(replace(job, out=Path(scratch)), no_progress)
        shared = share(worker, checkpoints(here)) if here else Share(1, torch.get_num_threads())
        with limited_threads(shared.threads):
            return _estimated(job, cells, absent, worker, shared)


def _estimated(job: Job, cells: Sequence[Cell], absent: Mapping[str, str], worker: Worker, share: Share) -> Estimate:
    run, downloads = _inspected(job, worker), {}
    unknown = {label: reason for label, reason in absent.items() if label not in job.folders}
    datasets, stood_in = with_stand_ins(run.worker.datasets, worker.job.out)
    rate = measure_rate(job.loading) if absent.keys() & job.folders.keys() else None
    on_card = START if rate and job.loading.device == "cpu" else None
    pending = _pending(job, run, [cell for cell in cells if cell.model in job.folders])
    parts: list[Part] = []
    needs: list[Needs] = []
    for label, own in by_model(pending):
        architecture = run.worker.subject(label).architecture
        needs.append(needs_of(label, run.worker, own))
        try:
            if label in absent:
                downloads[label], tokenizer = Footprint(architecture, job.loading).weights, RoughTokenizer()
            elif reason := needs[-1].shortage(job.loading.device):
                raise InputError(reason)
            else:
                tokenizer = load_tokenizer(job.folders[label], trust_remote_code=job.loading.trust_remote_code)
            workload = Workload(job.profile, datasets, architecture, tokenizer)
            tasks = list(_tasks(label, own, workload, run))
            longest = workload.longest_row()
        except InputError as error:
            unknown[label] = str(error)
            continue
        needs[-1] = needs_of(label, run.worker, own, longest)
        if label in absent and rate:
            parts += _timed(label, tasks, partial(count_speed, architecture, job.loading, rate))
        else:
            parts += _timed(label, tasks, partial(measure_speed, architecture, job.loading))
        if on_card is not None:
            speed = count_speed(architecture, job.loading, CARD)
            on_card += sum(speed.of(task.work) for task in tasks if task.work)
    away = [cell for cell in cells if cell.model not in job.folders]
    return Estimate(
        cells=len(cells),
        pending=len(pending) + len(away),
        parts=tuple(parts),
        needs=tuple(needs),
        unknown=unknown,
        share=share,
        downloads=downloads,
        stood_in=stood_in if parts else [],
        rate=rate,
        on_card=on_card,
    )


@dataclass
class _Run:
    worker: Worker  # in a temporary folder
    store: Store
    records: Sequence[Record]
    history: "History"
    # Of cells whose records may be there already, by path; none where there are no records.
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)


def _inspected(job: Job, worker: Worker) -> _Run:
    store = Store(job.out)
    # Digests of large files are taken along, so that these are not read once more.
    if (digests := store.folder / "digests.json").is_file():
        shutil.copy(digests, worker.job.out)
    records = read_records(store.records) if store.records.is_dir() else []
    return _Run(worker, store, records, History(records))


class History:
    """Seconds of finished records that this machine measured."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Read the costs of records; those of other machines, or with another number of threads, count for nothing."""
        self._seconds: dict[str, list[float]] = defaultdict(list)
        here = machine()
        for record in records:
            if record.status != "done" or record.identity is None or record.provenance["machine"] != here:
                continue
            identity, cost = record.identity, record.cost
            known = {"measured": cost["seconds"]}
            if "modification_seconds" in cost and identity["condition"] != ORIGIN:
                known["modified"] = cost["modification_seconds"]
            if identity["metric"] == "cost":
                taken = record.result["seconds"]
                # Statistics are taken once a model, so they are no part of what another injection takes.
                known["injected"] = taken["total"] - taken.get("statistics", 0.0)
            for kind, seconds in known.items():
                self._seconds[self._key(kind, identity)].append(seconds)

    def seconds(self, kind: str, identity: Mapping[str, Any] | None) -> float | None:
        """Return the mean seconds of what is alike in all that is :data:`DECISIVE`; ``None`` if there is nothing."""
        known = self._seconds.get(self._key(kind, identity)) if identity else None
        return fmean(known) if known else None

    @staticmethod
    def _key(kind: str, identity: Mapping[str, Any]) -> str:
        return canonical([kind, {name: identity.get(name) for name in DECISIVE[kind]}])


def _pending(job: Job, run: _Run, cells: Sequence[Cell]) -> list[Cell]:
    sets = run.worker.written
    pending = Resume(job, sets).pending(cells, run.records)
    if not run.records:
        return pending
    left = []
    for cell in pending:
        fingerprints = sets.get((cell.fingerprints, cell.seed))
        if fingerprints is not None:
            others = {seed: found for (name, seed), found in sets.items() if name == cell.fingerprints}
            identity = cell_identity(run.worker.subject(cell.model), cell, fingerprints, others)
            run.identities[cell.path] = identity
            if run.store.find(cell, cell_id(identity)):
                continue
        left.append(cell)
    return left


@dataclass
class _Task:
    name: str
    work: Work | None
    seconds: float | None = None  # that it took before, if they are known


def _tasks(label: str, cells: Sequence[Cell], workload: Workload, run: _Run) -> Iterator[_Task]:
    profile, subject = workload.profile, run.worker.subject(label)
    metric = cache(workload.metric)
    yield _Task("load the model", Work(handled=3 * workload.parameters))
    injected: list[FingerprintMethod] = []
    once = set[tuple[str, str]]()  # condition and metric of what the base has one figure of
    for group in checkpoints(cells):
        first = group[0]
        fingerprints = _set_or_similar(run, first.fingerprints, first.seed)
        checkpoint = first.method, fingerprints, first.seed
        known = first.path in run.identities
        if first.method in profile.methods and not (
            known and (run.store.deltas / f"{delta_name(subject, *checkpoint)}.json").is_file()
        ):
            injected.append(subject.method(first.method))
            seconds = run.history.seconds("injected", injection_identity(subject, *checkpoint) if known else None)
            yield _Task(f"inject {first.method}", workload.injection(injected[-1], fingerprints), seconds)
        doses, counted = curves(cell.condition for cell in group), set[tuple[str, ...]]()
        for weights, own in alike(group):
            condition, slowdown = own[0].condition, 1.0
            if weights:
                modification = subject.modification(condition)
                slowdown = math.prod(part.slowdown for part in modification.parts)
                # What several doses pay for once is in the seconds of one of them.
                alone = not any(part.on_the_way and not math.isnan(part.amount) for part in modification.parts)
                seconds = run.history.seconds("modified", run.identities.get(own[0].path)) if alone else None
                applied = _applied(condition, subject, doses, counted)
                work = workload.modification(applied)
                if "method" in modification.needs and first.method in profile.methods:
                    work += workload.injection(subject.method(first.method), fingerprints) or Work()
                yield _Task(condition, work, seconds)
            for cell in own:
                if of_base_alone(cell):
                    if (cell.condition, cell.metric) in once:
                        continue
                    once.add((cell.condition, cell.metric))
                if cell.metric != "cost":  # known once the injection was made
                    seconds = run.history.seconds("measured", run.identities.get(cell.path))
                    times = max(1, len(subject.leaks(cell.condition, len(fingerprints)))) if cell.metric == "fsr" else 1
                    yield _Task(cell.metric, metric(cell.metric, fingerprints) * slowdown * float(times), seconds)
            yield _Task("restore the weights", Work(handled=2 * workload.parameters))
    yield from _tasks_once(label, cells, injected, workload, run)


def _applied(
    condition: str, subject: Subject, doses: Mapping[tuple[str, ...], Sequence[float]], counted: set[tuple[str, ...]]
) -> Modification:
    """Return what is applied for a condition; of a curve that one run passes, the largest dose once, then nothing.

    The first condition of such a curve pays for all; it is then among those ``counted``.
    """
    applied, weights = {}, weights_parts(condition)
    for at, (part, each) in enumerate(zip(weights, subject.modification(condition).parts, strict=True)):
        curve = (*weights[:at], name_of(part))
        if each.on_the_way and AT in part:
            if curve in counted:
                continue
            counted.add(curve)
            each = subject.modification(f"{name_of(part)}{AT}{max(doses[curve]):g}")
        applied[part] = each
    return Composition(applied)


def _tasks_once(
    label: str, cells: Sequence[Cell], injected: Sequence[FingerprintMethod], workload: Workload, run: _Run
) -> Iterator[_Task]:
    profile, subject = workload.profile, run.worker.subject(label)
    statistics = workload.statistics(injected)
    if statistics != Work() and not any(run.store.statistics.glob("*.safetensors")):
        yield _Task("key statistics", statistics)
    searches = run.store.folder / "searches"
    data = set()
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        for part in needs_search(subject.modification(condition)):
            if part.source not in data and not any(searches.glob(f"{label}-finetune-{part.source}-*.json")):
                data.add(part.source)
                yield _Task(f"search the rate of {part.name}", workload.search(part))
    for name, method in dict.fromkeys((cell.fingerprints, cell.method) for cell in cells):
        if profile.searches_rate(method) and not any(searches.glob(f"{label}-{method}-{name}-*.json")):
            fingerprints = _set_or_similar(run, name, profile.seeds[0])
            work = workload.injection_search(subject.method(method), fingerprints)
            yield _Task(f"search the rate of {method}", work)
    for name in dict.fromkeys(cell.fingerprints for cell in cells):
        if (name, profile.seeds[0]) not in run.worker.written:
            yield _Task(f"build the set {name}", Work(passes=10, read=SET_TOKENS, scored=SET_TOKENS))


def _set_or_similar(run: _Run, name: str, seed: int) -> FingerprintSet:
    """Return a set, or one of its make if it is yet to be built for the model."""
    if found := run.worker.written.get((name, seed)):
        return found
    profile = run.worker.job.profile
    # Its texts are as long as those of the written set, which is counted as often as it goes into the size.
    return FingerprintSet(name, tuple(islice(cycle(find_set("nlf", profile.sets, seed)), profile.set_size)))


def _timed(label: str, tasks: Sequence[_Task], measure: Callable[[], Speed]) -> list[Part]:
    speed = cache(measure)  # only if a time is not known

    parts = []
    for name in dict.fromkeys(task.name for task in tasks):
        own = [task for task in tasks if task.name == name]
        times = [speed().of(each.work) if each.seconds is None and each.work else each.seconds for each in own]
        known = [seconds for seconds in times if seconds is not None]
        total = sum(known) if len(known) == len(own) else None
        parts.append(Part(label, name, len(own), total, all(task.seconds is not None for task in own)))
    return parts


def forecast(estimate: Estimate, job: Job) -> str:
    """Return the estimate as text: time, memory and disk beside what there is, then a table of the work left."""
    lines = [f"{estimate.cells} cells, {estimate.pending} of them to do: {_grid(job.profile)}."]
    if estimate.pending:
        lines += _time(estimate, job.profile.name)
        if estimate.needs:
            most = estimate.share.processes * max(each.main.total for each in estimate.needs)
            lines.append(_peak("memory", most, free_memory()))
            if card := max(each.card.total for each in estimate.needs):
                lines.append(_peak("card", card, free_card(job.loading.device)))
        disk = sum(each.disk for each in estimate.needs)
        lines.append(f"disk    {shown(disk)} in {job.out}, of {shown(free_disk(job.out))} free ({ESTIMATED})")
        lines += [
            _download(each, estimate.downloads[each.label])
            for each in estimate.needs
            if each.label in estimate.downloads
        ]
    lines += [f"no time for {label}: {reason}" for label, reason in estimate.unknown.items()]
    if estimate.parts:
        listed = _longest(estimate.parts)
        rows = [(each.model, each.name, each.times, time(each.seconds), _basis(each)) for each in listed]
        header = ("model", "what", "times", "time", "rests on")
        lines += ["", tabulate(rows, header, tablefmt="github", disable_numparse=True), ""]
    return "\n".join(lines)


LINES = 16  # of the table of work; what takes least is one line


def _longest(parts: Sequence[Part]) -> list[Part]:
    """Return the parts in their order, the shortest ones as one line a model where there are many."""
    if len(parts) <= LINES:
        return list(parts)
    models = list(dict.fromkeys(each.model for each in parts))
    known = sorted((each for each in parts if each.seconds is not None), key=lambda each: -(each.seconds or 0.0))
    kept = [each for each in parts if each in known[: LINES - len(models)] or each.seconds is None]
    for model in models:
        rest = [each for each in known[LINES - len(models) :] if each.model == model]
        seconds, measured = sum(each.seconds or 0.0 for each in rest), all(each.measured for each in rest)
        if rest:
            kept.append(Part(model, f"{len(rest)} shorter ones", sum(each.times for each in rest), seconds, measured))
    return kept


def _grid(profile: Profile) -> str:
    """Return what a run is made of, such as ``3 models × 4 sets × 7 rows × 7 conditions``."""
    sizes = {"model": profile.models, "set": profile.fingerprints, "seed": profile.seeds}
    counted = [f"{len(each)} {name}{'s' * (len(each) != 1)}" for name, each in sizes.items()]
    rows = f"the base and {len(profile.methods)} method{'s' * (len(profile.methods) != 1)}"
    return " × ".join([*counted, f"({rows})", f"{len(profile.conditions)} conditions"])


def _download(needs: Needs, size: float) -> str:
    card = f", {shown(needs.card.total)} on the card" if needs.card.total else ""
    memory = f"{shown(needs.main.total)} of main memory{card} at the peak, {shown(needs.disk)} on disk"
    return f"{needs.label}: {memory}; {shown(size)} to download (from its bundled shape)"


def total(estimate: Estimate) -> float:
    """Return the seconds of everything that is known, the start of the process included."""
    return START + sum(part.seconds or 0.0 for part in estimate.parts) / estimate.share.processes


def time(seconds: float | None) -> str:
    """Return a duration to read, in two digits or so."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = math.ceil(seconds / 60), seconds / 3600
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours:.1f} h" if hours < 96 else f"{hours / 24:.0f} days"


def _basis(part: Part) -> str:
    known = MEASURED if part.measured else ESTIMATED
    return known if part.seconds is not None else "nobody but its author knows"


def _time(estimate: Estimate, profile: str) -> list[str]:
    unknown = sum(part.seconds is None for part in estimate.parts)
    measured = sum(part.seconds or 0.0 for part in estimate.parts if part.measured)
    if not estimate.parts and estimate.unknown:
        return [f"time    {UNKNOWN} until models and data are here: fpbench fetch {profile}"]
    known = measured / estimate.share.processes / (total(estimate) or 1.0)
    basis = f"{known:.0%} of it {MEASURED}, the rest {ESTIMATED}" if measured else ESTIMATED
    missing = f", without {unknown} of unknown cost" if unknown else ""
    absent = ", without the models named below" if estimate.unknown else ""
    lines = [f"time    {time(total(estimate))} in {estimate.share}, other work aside ({basis}){missing}{absent}"]
    if estimate.on_card is not None:
        card = f"{CARD.operations / 1e12:.0f} TFLOP/s and {CARD.bytes / 1e12:.1f} TB/s"
        lines.append(
            f"        {time(estimate.on_card)} on one card of {card}, two thirds of an A100's data sheet (assumed)"
        )
    if estimate.rate:
        device = f"{estimate.rate.operations / 1e12:.2g} TFLOP/s and {estimate.rate.bytes / 1e9:.2g} GB/s"
        lines.append(f"        models that are not here: bundled shapes, at the {device} measured on this machine now")
    if estimate.stood_in:
        lines.append(f"        data that are not here, by the usual lengths of their texts: {_some(estimate.stood_in)}")
    if estimate.rate or estimate.stood_in:
        lines.append(f"        surer once they are here: fpbench fetch {profile}")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _peak(what: str, need: float, free: float) -> str:
    smaller = "; batches that do not fit are tried again in halves" if need > free else ""
    return f"{what:7} {shown(need)} at the peak, of {shown(free)} free ({ESTIMATED}){smaller}"
