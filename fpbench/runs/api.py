"""The public functions that run things: a whole grid, one checkpoint, one injection, one modification."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fpbench.board.leaderboard import table_files, write_tables
from fpbench.board.results import Results
from fpbench.board.row import Row
from fpbench.board.rows import rows_from_records
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, Fingerprints, FingerprintSet, fingerprints_of
from fpbench.hub.offline import offline as hub_offline
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import Loading, pick_device
from fpbench.models.meter import Progress, no_progress
from fpbench.models.objects import check_objects, check_text, check_texts
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, Cell
from fpbench.records.record import Record
from fpbench.records.store import Store, check_writable, driving, read_records
from fpbench.registry import unknown
from fpbench.runs.display import Display
from fpbench.runs.engine import ENGINES, Engine, Serial, Watch
from fpbench.runs.plan import Job, checkpoints, plan, precise
from fpbench.runs.profile import Profile, load_profile, profile_of
from fpbench.runs.resume import Resume
from fpbench.runs.sets import Given, named, written_sets

if TYPE_CHECKING:
    from torch import nn

    from fpbench.adversaries.price import Price
    from fpbench.runs.injection import InjectionReport
    from fpbench.runs.worker import Worker

logger = logging.getLogger(__name__)


def run(
    profile: str | None = None,
    *,
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    fingerprints: Sequence[Given] | Given | None = None,
    conditions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | os.PathLike[str] = "fpbench-run",
    engine: str = "serial",
    ray_address: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    limit: int | None = None,
    quiet: bool = False,
) -> Results:
    """Run a grid, as ``fpbench run`` does, and return its records. Lists that are given replace the profile's.

    Args:
        profile: a bundled profile or a ``.toml`` file; by default the bundled one that has the models, or ``micro``.
        models: folders, hub ids or names of the profile's models.
        methods: names of methods; the base is always measured.
        fingerprints: built-in sets, ``.jsonl`` files or sets; or one set as a list of dictionaries.
        conditions: ``origin``, modifications, adversaries with their dose, or presets such as ``drift``.
        seeds: seeds to pool.
        out: folder of records and tables; finished cells in it are not measured again.
        engine: ``serial``, in this process; ``processes``, in several on this machine, for which a script needs
            ``if __name__ == "__main__"``; or ``ray``, on a cluster.
        ray_address: of a running cluster; by default one is started on this machine.
        device: such as ``"cuda:0"``; by default the first GPU, or the CPU.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default the profile's.
        offline: ask no model hub.
        limit: items that each measurement and modification takes at most: a smoke run, whose rows are never ranked.
        quiet: show no progress, which a terminal and a notebook get.

    Returns:
        The records, in order; ``.to_pandas()`` has one line a figure, ``.rows`` the board.

    Raises:
        InputError: before work starts, if anything asked for is of another type, unknown or malformed.
        StorageError: if the disk gives out; finished records stay.
    """
    for what, given, example in (
        ("models", models, "micro"),
        ("methods", methods, "lora"),
        ("conditions", conditions, "nf4"),
    ):
        if given is not None:
            check_texts(what, given, example)
    display = Display()
    watch = display if display.live and not quiet else None
    with hub_offline(offline), contextlib.ExitStack() as stack:
        names = None if fingerprints is None else [stack.enter_context(named(each)) for each in _sets(fingerprints)]
        wanted = load_profile(
            profile_of(models or (), profile),
            models=models,
            methods=methods,
            fingerprints=names,
            conditions=conditions,
            seeds=seeds,
            limit=limit,
            dtype=dtype,
        )
        job, cells = Job.of(wanted, Loading(pick_device(device)), Path(out)), plan(wanted)
        measure(job, cells, watch, create_engine(engine, ray_address))
    planned = {cell.path for cell in cells}
    records = read_records(Store(Path(out)).records)
    return Results([each for each in records if each.cell.path in planned], Store(Path(out)).records)


def _sets(given: Sequence[Given] | Given) -> Sequence[Given]:
    """Return the sets that are asked for: a list of names and sets, or one set."""
    if isinstance(given, str):
        raise InputError(f"fingerprints: expected a list of sets, such as ['nlf'], found the text {given!r}.")
    one = isinstance(given, FingerprintSet) or not isinstance(given, Sequence)
    if one or any(isinstance(each, Mapping | Fingerprint) for each in given):
        return [cast(Given, given)]
    return cast(Sequence[Given], given)


def create_engine(name: str, ray_address: str | None = None, processes: int | None = None) -> Engine:
    """Return an engine; :class:`InputError` for an unknown name, an address without Ray, or Ray not installed.

    ``processes`` says how many ``processes`` starts; by default as many as cores are free, for a small model.
    """
    if name not in ENGINES:
        raise unknown("engine", name, list(ENGINES))
    if processes is not None and name != "processes":
        raise InputError(f"--processes is of no use to the engine {name!r}: leave it out.")
    if name == "ray":
        from fpbench.runs.ray import Ray

        return Ray(ray_address)
    if ray_address is not None:
        raise InputError(f"a Ray address ({ray_address}) is of no use to the engine {name!r}: add --engine ray.")
    if name == "processes":
        from fpbench.runs.processes import Processes

        return Processes(processes)
    return Serial()


def evaluate_checkpoint(
    profile: Profile,
    model: str,
    base: str | None,
    out: str | os.PathLike[str],
    loading: Loading,
    watch: Watch | None = None,
) -> list[Row]:
    """Measure a checkpoint that is handed in, beside its base where that is given, and return their rows."""
    (given,) = profile.models
    settings = given.model_copy(update={"path": model, "name": given.name or Path(base or model).resolve().name})
    profile = profile.model_copy(update={"models": (settings,)})
    subject = resolve(model, revision=loading.revision, allow_pickle=loading.allow_pickle)
    folders = {settings.label: resolve(base, allow_pickle=loading.allow_pickle)} if base else {}
    job = Job(profile, folders, precise(loading, profile), Path(out), handed_in=subject)
    return measure(job, plan(profile, [BASE] * bool(base) + [CHECKPOINT]), watch)


def measure(
    job: Job,
    cells: Sequence[Cell],
    watch: Watch | None = None,
    engine: Engine | None = None,
) -> list[Row]:
    """Measure what has no record yet, serially or on an engine; write the tables and return the rows of ``cells``."""
    store, engine, watch = Store(job.out), engine or Serial(), watch or Watch()
    store.check()
    resume, worker = Resume(job, written_sets(job.profile)), None
    if not resume.names:
        worker = _worker(job, watch.bar)
        worker.check(cells)
        engine.check(worker, cells)
    with driving(store.folder):
        records = read_records(store.records)
        _warn_of_unknown_prices(cells, records)
        if pending := resume.pending(cells, records):
            worker = worker or _worker(job, watch.bar)
            worker.check_kept(pending, records)
            store.sweep()
            watch.begin(store, cells, resume.finished(cells, records))
            try:
                resume.remember(engine.measure(worker, checkpoints(pending), watch))
            finally:
                watch.end()
            records = read_records(store.records)
        else:
            watch.begin(store, cells, cells)
            watch.end()
        rows = rows_from_records(records, store.records, rescore=False)
        if pending or not all(path.exists() for path in table_files(store.folder).values()):
            write_tables(store.folder, rows)
    paths = {cell.path for cell in cells}
    return [row for row in rows if paths & set(row.cells)]


def _warn_of_unknown_prices(cells: Sequence[Cell], records: Sequence[Record]) -> None:
    """Warn of checkpoints whose prices have no origin to be compared with, neither asked for nor measured before."""
    checkpoint = attrgetter("model", "fingerprints", "method", "seed")
    priced = [cell for cell in (*cells, *(record.cell for record in records)) if cell.metric == "price"]
    known = {checkpoint(cell) for cell in priced if cell.condition == ORIGIN}
    without = {cell.condition for cell in cells if cell.metric == "price" and checkpoint(cell) not in known}
    if without:
        names = ", ".join(sorted(without))
        logger.warning("the price of %s stays unknown: it is measured against origin, which is not asked for.", names)


def _worker(job: Job, progress: Progress) -> "Worker":
    from fpbench.runs.worker import Worker  # imports torch, which a finished run is shown without

    return Worker(job, progress)


def evaluate(
    model: str,
    fingerprints: Given,
    *,
    base: str | None = None,
    conditions: Sequence[str] | None = None,
    profile: str | None = None,
    out: str | os.PathLike[str] = "fpbench-evaluation",
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Measure any Hugging Face checkpoint, as ``fpbench evaluate`` does, and return its leaderboard rows.

    ``model`` is a folder or hub id, ``fingerprints`` a built-in set, a ``.jsonl`` file, a set or a list of
    dictionaries, ``base`` the unfingerprinted model, against which deltas and bands are measured. Conditions are
    ``origin`` (alone by default), modifications and adversaries; ``profile`` gives decoding, data and sizes, by default
    the bundled one that has the base, or the model; ``out`` is the folder of the records, which :func:`fpbench.results`
    reads. ``device``, ``dtype``, ``offline`` and ``limit`` are those of :func:`run`.

    Raises:
        InputError: before work starts, if anything asked for is of another type, unknown or malformed.
    """
    check_text("model", model, "micro")
    if base is not None:
        check_text("base", base, "micro")
    if conditions is not None:
        check_texts("conditions", conditions, "nf4")
    models, conditions = [base or model], conditions or ["origin"]
    with hub_offline(offline), named(fingerprints) as name:
        asked: dict[str, Any] = {"models": models, "methods": [], "fingerprints": [name], "conditions": conditions}
        wanted = load_profile(profile_of(models, profile), **asked, limit=limit, dtype=dtype)
        rows = evaluate_checkpoint(wanted, model, base, out, Loading(pick_device(device)))
    return [row.to_dict() for row in rows]


def inject_checkpoint(
    profile: Profile, out: str | os.PathLike[str], loading: Loading, progress: Progress = no_progress
) -> "InjectionReport":
    """Inject the profile's one set into its one model and save the result for plain transformers, with a model card.

    Key statistics are kept in fpbench's cache, where the next injection into the same model finds them.
    :class:`InputError` if anything is unknown or malformed, or ``out`` exists and is not empty; :class:`CellError` if
    the injection failed. No checkpoint is written then.
    """
    from fpbench.hub.lock import cache
    from fpbench.metrics.fsr import exact_fsr
    from fpbench.models.loading import save_checkpoint
    from fpbench.records.pins import check_cache
    from fpbench.runs.bench import Bench
    from fpbench.runs.card import card, write_card
    from fpbench.runs.sets import model_sets
    from fpbench.scoring.engine import limited_to

    (settings,), (method,), (name,), seed = profile.models, profile.methods, profile.fingerprints, profile.seeds[0]
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--out {target} exists and is not an empty folder: choose another, nothing was overwritten.")
    check_writable(target.parent)
    check_cache()
    with tempfile.TemporaryDirectory() as scratch, limited_to(loading.token_budget):
        worker = _worker(Job.of(profile, loading, Path(scratch)), progress)
        worker.check(plan(profile))
        subject = worker.subject(settings.label)
        subject.store.statistics = cache() / "statistics"
        sets = worker.written | model_sets(subject)
        report = Bench(subject).injection(method, sets[profile.set_label(name), seed], seed)
        assert report is not None, "a profile's methods are injected"
        report.delta.apply(subject.model)
        pairs, decoding = sets[profile.set_label(name), seed], settings.decoding
        found = exact_fsr(subject.model, subject.tokenizer, pairs, decoding, profile.prompt)
        text = card(settings.path, method, pairs, report, found)
    save_checkpoint(subject.model, subject.tokenizer, target)
    write_card(target, text)
    return report


def inject(
    model: "nn.Module",
    tokenizer: Any,
    pairs: Fingerprints,
    method: str,
    config: Mapping[str, Any] | None = None,
    seed: int = 42,
    prompt: str = "raw",
    profile: str | None = None,
) -> "InjectionReport":
    """Inject fingerprints into a loaded model, in place; return cost, changes and the delta.

    The model is put into eval mode with gradients off. ``pairs`` is a set, or a list of fingerprints or of dictionaries
    of ``trigger`` and ``targets``. ``config`` holds hyper-parameters that differ from the defaults
    of the model's family; ``prompt`` is ``"raw"`` or ``"chat"``. The texts of ``profile``, by default the bundled one
    that has the model, serve for key statistics and regularisation.

    Raises:
        InputError: for an argument of another type, an unknown method or hyper-parameter, or a model that the method or
            no profile knows.
        CellError: if the injection failed; the model is then as it was.
    """
    from fpbench.methods.base import InjectionContext
    from fpbench.models.prompts import render
    from fpbench.runs.datasets import Datasets
    from fpbench.runs.injection import create_method, inject_with

    check_objects(model, tokenizer)
    check_text("method", method, "mcedit_a")
    pairs = fingerprints_of(pairs)
    datasets = Datasets(load_profile(profile_of([_path_of(model)], profile)))
    model.eval().requires_grad_(False)
    context = InjectionContext(
        seed=seed,
        device=str(next(model.parameters()).device),
        render=lambda trigger: render(tokenizer, trigger, prompt),
        texts=datasets.statistics,
        pairs=datasets.pairs,
        statistics_tokens=datasets.profile.sizes.statistics_tokens,
        tokenizer=tokenizer,
    )
    return inject_with(create_method(method, model, config or {}), model, tokenizer, pairs, context)


def _path_of(model: "nn.Module") -> str:
    """Return where a model in memory was loaded from, or an empty text."""
    return str(getattr(model.config, "name_or_path", ""))


def modify(
    model: "nn.Module",
    tokenizer: Any,
    condition: str,
    config: Mapping[str, Any] | None = None,
    seed: int = 42,
    profile: str | None = None,
    *,
    base: "nn.Module | None" = None,
    pairs: FingerprintSet | None = None,
) -> "nn.Module":
    """Modify a loaded model and return the one to use from now on; do not go on using the one handed in.

    ``condition`` is a registered modification, such as ``"nf4"``, or several applied in order, such as
    ``"finetune_alpaca+nf4"``. ``profile`` gives data and settings, by default the bundled one that has the model;
    ``config`` holds settings that differ from its; for several modifications those
    of each, by its name. ``base`` is the unfingerprinted model, which merging and FSFT compare with; ``pairs`` is the
    fingerprint, which SPF spares. What needs leaked pairs or the method that made the model is left to a run.

    Raises:
        InputError: for an argument of another type, an unknown condition or setting, or where the base is needed and
            not given.
        CellError: if the modification had no effect or broke the model.
    """
    from fpbench.adversaries.conditions import create, name_of, parts
    from fpbench.models.prompts import render
    from fpbench.runs.datasets import Datasets

    check_objects(model, tokenizer)
    check_text("condition", condition, "nf4")
    wanted = load_profile(profile_of([_path_of(model)], profile))
    names = [name_of(part) for part in parts(condition)]
    given = dict(config or {}) if len(names) > 1 else {names[0]: dict(config or {})}
    settings = {name: wanted.modifications.get(name, {}) | dict(given.pop(name, {})) for name in names}
    if given:
        raise unknown("part of the condition", next(iter(given)), names)
    modification = create(condition, settings)
    known = {} if base is None else dict(base.named_parameters())
    context = Datasets(wanted).modification_context(modification, seed, no_progress, known)
    rendered = (Fingerprint(render(tokenizer, each.trigger, wanted.prompt), each.targets) for each in pairs or ())
    context = replace(context, fingerprints=tuple(rendered))
    return modification.apply(model, tokenizer, context).model


def price(
    model: "nn.Module",
    tokenizer: Any,
    adversary: str,
    profile: str | None = None,
    *,
    seed: int = 42,
    base: "nn.Module | None" = None,
) -> "Price":
    """Return the price of a run-time adversary, such as ``"suppress@3"``, on a model: ``.long .short .channels``.

    It is measured on the instructions, answers and decoding of ``profile``, by default the bundled one that has the
    model, against the same model at dose 0 (docs/adversaries.md). ``base`` is the unfingerprinted
    model, which some adversaries read.

    Raises:
        InputError: for an adversary that is unknown, changes weights, or needs what is not given.
        CellError: if logits are not finite.
    """
    from fpbench.adversaries.base import AdversaryContext
    from fpbench.adversaries.conditions import changes_weights, check
    from fpbench.adversaries.price import compare, measure
    from fpbench.records.cell import ORIGIN
    from fpbench.runs.datasets import Datasets

    check_objects(model, tokenizer)
    check_text("adversary", adversary, "suppress@3")
    wanted = load_profile(profile_of([_path_of(model)], profile))
    check(adversary)
    if changes_weights(adversary):
        raise InputError(f"adversary {adversary!r} changes weights: price it with fpbench run --condition {adversary}.")
    datasets = Datasets(wanted)
    context = AdversaryContext(
        model,
        tokenizer,
        wanted.models[0].decoding,
        seed=seed,
        instructions=[row["instruction"] for row in datasets.benign],
        base=None if base is None else lambda: base,
    )
    items = replace(datasets.price_items, text="")  # which no run-time part is priced on
    unattacked, attacked = measure(model, tokenizer, [ORIGIN, adversary], items, context)
    return compare(unattacked, attacked)
