"""Measuring one subject: cells in, records out."""

import contextlib
import copy
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any, Literal

from torch import Tensor

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries, changes_weights, curves, needs, needs_siblings, weights_parts
from fpbench.adversaries.price import Items, measure
from fpbench.data import origin
from fpbench.errors import CellError, FpbenchError, InputError, StorageError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.hub.download import commit_of
from fpbench.metrics.measure import METRICS, Measurement, in_turn_fsr
from fpbench.models.meter import Meter
from fpbench.models.prompts import render
from fpbench.models.weights import Delta, digest, preserved, state_digest
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN, Cell
from fpbench.records.provenance import code_and_machine, source_of
from fpbench.records.record import Record, cell_id
from fpbench.registry import METHODS
from fpbench.runs.identity import cell_identity, delta_name
from fpbench.runs.injection import InjectionReport, inject_with
from fpbench.runs.plan import Job
from fpbench.runs.rival import fsr_of, injection_of_rival
from fpbench.runs.search import injection_rate, with_searched_rates
from fpbench.runs.subject import Subject
from fpbench.scoring.engine import budgets_used
from fpbench.text import writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A finished measurement: result, per-query results, cost, and the proof of injection and modification."""

    result: Mapping[str, Any]
    queries: list[dict[str, Any]]
    cost: Mapping[str, Any]
    proof: Mapping[str, Any]
    confinement: Mapping[str, Any] | None = None  # what a submitted adversary was kept from


@dataclass(frozen=True)
class Failed:
    """A measurement that failed, and why."""

    reason: str
    traceback: str | None = None

    @staticmethod
    def of(error: Exception) -> "Failed":
        """Return why, with a traceback for errors that fpbench did not foresee; a :class:`StorageError` is raised."""
        if isinstance(error, StorageError):  # ends the run
            raise error
        if isinstance(error, FpbenchError):
            return Failed(str(error))
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return Failed(writable(reason), writable("".join(traceback.format_exception(error))))


def in_turn(
    outcomes: Sequence[Done | Failed], leaks: Sequence[Sequence[int]], fingerprints: FingerprintSet
) -> Done | Failed:
    """Return the FSR of a condition that was measured once for each group of pairs that leaked; or the first failure.

    Seconds are added up. The proof is that of the first, and ``leaks`` has what was done for each of the others.
    """
    done = [each for each in outcomes if isinstance(each, Done)]
    if len(done) < len(outcomes):
        return next(each for each in outcomes if isinstance(each, Failed))
    result, queries = in_turn_fsr([(dict(each.result), each.queries) for each in done], leaks, fingerprints)
    cost: dict[str, Any] = dict(done[0].cost)
    for name in cost:
        found = [each.cost[name] for each in done if name in each.cost]
        if "seconds" in name:
            cost[name] = sum(found)
        elif "memory" in name:
            cost[name] = max(found)
    proof = dict(done[0].proof) | {"leaks": [each.proof.get("modification") for each in done[1:]]}
    return Done(result, queries, cost, proof, done[0].confinement)


def record_of(
    job: Job,
    cell: Cell,
    identity: dict[str, Any] | None,
    outcome: Done | Failed,
    remarks: list[str] | None = None,
    confinement: Mapping[str, Any] | None = None,
) -> Record:
    """Return the record of a cell; the store adds schema, checksum and the digest of the per-query results.

    ``remarks`` are about a checkpoint that was handed in; ``confinement`` is what a submission was kept from.
    """
    provenance = code_and_machine() | {
        "profile": job.profile.name,
        "revision": job.settings(cell.model).revision,
        "commit": commit_of(job.folder(cell.model, cell.method == CHECKPOINT)),
        "data": {name: origin(source) for name, source in job.profile.data.items()},
    }
    if cell.method == CHECKPOINT:
        provenance["checkpoint"] = remarks
    if cell.method in job.profile.methods:
        method = METHODS.get(job.profile.method_of(cell.method)[0])
        provenance["method_source"] = source_of(method)
        if about := getattr(method, "about", None):  # of a submission: who, which paper, which licence
            provenance["submission"] = dict(about)
            provenance["confinement"] = confinement  # not known where the injection failed
    if handed_in := _handed_in(cell.condition):
        provenance["adversaries"] = handed_in
        provenance["confinement"] = outcome.confinement if isinstance(outcome, Done) else None
    status: Literal["done", "failed"] = "failed" if isinstance(outcome, Failed) else "done"
    name = cell_id(identity) if identity else None  # there is none of a failure before it was known
    measured = {key: each for key, each in vars(outcome).items() if key not in ("queries", "confinement")}
    return Record(cell, status, job.profile.protocol, name, identity, provenance, **measured)


def of_base_alone(cell: Cell) -> bool:
    """Return whether a figure is one of the base that neither fingerprints nor seed decide."""
    decided = changes_weights(cell.condition) or needs(cell.condition, "leaked", "siblings")
    return cell.method == BASE and METRICS[cell.metric].of_model and not decided


def _handed_in(condition: str) -> dict[str, Any]:
    """Return whose the submitted adversaries of a condition are, by name."""
    found = {each.name: getattr(each, "about", None) for each in adversaries(condition)}
    return {name: dict(about) for name, about in found.items() if about}


@dataclass(frozen=True)
class Bench:
    """Measures the cells of one subject, whose model is left as it was loaded.

    Attributes:
        sets: the same fingerprint set at every seed of the run, with which siblings are fingerprinted.
    """

    subject: Subject
    sets: Mapping[int, FingerprintSet] = field(default_factory=dict)

    def measure(
        self, cells: Sequence[Cell], fingerprints: FingerprintSet
    ) -> tuple[dict[str, str], Iterator[tuple[Cell, str | None]]]:
        """Measure the cells of one checkpoint that have no record yet; a failure is recorded, not raised.

        Return the id of each cell's record, by the cell's path; and the work itself, an iterator that gives each cell
        once its record is there, with why it failed, if it did. :class:`StorageError` if a record cannot be written.
        """
        identities = {cell: cell_identity(self.subject, cell, fingerprints, self.sets) for cell in cells}
        names = {cell.path: cell_id(identity) for cell, identity in identities.items()}
        return names, self._recorded(identities, names, fingerprints)

    def _recorded(
        self, identities: Mapping[Cell, dict[str, Any]], names: Mapping[str, str], fingerprints: FingerprintSet
    ) -> Iterator[tuple[Cell, str | None]]:
        subject, store = self.subject, self.subject.store
        pending = [cell for cell in identities if store.find(cell, names[cell.path]) is None]
        yield from ((cell, None) for cell in identities if cell not in pending)
        for cell in filter(of_base_alone, list(pending)):
            if found := store.elsewhere(cell, identities[cell]):
                record, queries = found
                provenance = {"measured_as": str(record.cell)} | record.provenance  # a copy of one names the first
                known = replace(record, cell=cell, id=names[cell.path], identity=identities[cell])
                store.write(replace(known, provenance=provenance), queries)
                pending.remove(cell)
                yield cell, None
        for cell, outcome, confinement in self._measured(pending, fingerprints):
            remarks = subject.remarks if cell.method == CHECKPOINT else None
            record = record_of(subject.job, cell, identities[cell], outcome, remarks, confinement)
            store.write(record, outcome.queries if isinstance(outcome, Done) else [])
            logger.info("%s: %s", cell, f"{record.cost['seconds']:.1f} s" if record.cost else record.status)
            yield cell, outcome.reason if isinstance(outcome, Failed) else None
        changed = any(cell.method in subject.profile.methods or changes_weights(cell.condition) for cell in pending)
        if changed and state_digest(subject.model) != subject.loaded.digest:
            label = subject.settings.label
            logger.warning("the weights of %s were not restored bit for bit: it is loaded again.", label)
            del subject.loaded

    def _measured(
        self, pending: Sequence[Cell], fingerprints: FingerprintSet
    ) -> Iterator[tuple[Cell, Done | Failed, Mapping[str, Any] | None]]:
        """Yield each cell with its outcome and what the injection was kept from."""
        if not pending:
            return
        try:
            report = self.injection(pending[0].method, fingerprints, pending[0].seed)
        except Exception as error:  # an adapter may raise anything; its cells then show as failed
            yield from ((cell, Failed.of(error), None) for cell in pending)
            return
        confinement = None if report is None else report.confinement
        prices = Prices([cell.condition for cell in pending if cell.metric == "price"])
        siblings = self._siblings(pending)  # injected before the model is changed
        leaking: dict[tuple[tuple[int, ...], ...], list[Cell]] = {(): []}  # by what leaks together, each time
        for cell in pending:
            try:
                leaks = tuple(map(tuple, self.subject.leaks(cell.condition, len(fingerprints))))
                leaking.setdefault(leaks, []).append(cell)
            except InputError as error:  # there are too few fingerprints
                yield cell, Failed.of(error), confinement
        with contextlib.ExitStack() as closing:
            shared = Shared(report, prices, siblings, curves(cell.condition for cell in pending), closing)
            for leaks, group in leaking.items():
                found = (
                    self._in_turn(group, fingerprints, shared, leaks)
                    if leaks
                    else self._once(group, fingerprints, shared)
                )
                yield from ((cell, outcome, confinement) for cell, outcome in found)

    def _in_turn(
        self,
        cells: Sequence[Cell],
        fingerprints: FingerprintSet,
        shared: "Shared",
        leaks: Sequence[tuple[int, ...]],
    ) -> Iterator[tuple[Cell, Done | Failed]]:
        """Measure cells once for each group of pairs that leaks; of the further ones FSR alone."""
        found: dict[Cell, list[Done | Failed]] = {cell: [] for cell in cells}
        for turn, leak in enumerate(leaks):
            asked = [cell for cell in cells if turn == 0 or cell.metric == "fsr"]
            for cell, outcome in self._once(asked, fingerprints, shared, leak):
                found[cell].append(outcome)
        for cell, outcomes in found.items():
            yield cell, in_turn(outcomes, leaks, fingerprints) if cell.metric == "fsr" else outcomes[0]

    def _once(
        self, cells: Sequence[Cell], fingerprints: FingerprintSet, shared: "Shared", leak: tuple[int, ...] = ()
    ) -> Iterator[tuple[Cell, Done | Failed]]:
        """Measure cells on the checkpoint, its weights modified once for all that modify them alike, and put back."""
        loaded, report = self.subject.loaded, shared.report
        for weights, group in alike(cells):
            # Where nothing changes nothing is put back, and bitsandbytes repacks the weights of a quantised model.
            with preserved(loaded.model, loaded.weights) if report or weights else contextlib.nullcontext():
                if report is not None:
                    report.delta.apply(loaded.model)
                yield from self._measure_alike(group, fingerprints, shared, leak)

    def injection(self, method: str, fingerprints: FingerprintSet, seed: int) -> InjectionReport | None:
        """Return the stored injection, or make one, which is stored and read back before anything is measured."""
        subject = self.subject
        if method not in subject.profile.methods:  # the base, and a checkpoint that was handed in
            return None
        searched = injection_rate(subject, method, fingerprints) if subject.profile.searches_rate(method) else None
        found = {"learning_rate": searched.learning_rate} if searched else {}
        name = delta_name(subject, method, fingerprints, seed)
        path = subject.store.deltas / f"{name}.safetensors"
        stored = InjectionReport.load(path, dict(subject.model.named_parameters()))
        if stored is None:
            adapter, context, loaded = subject.method(method, **found), subject.injection_context(seed), subject.loaded
            with preserved(loaded.model, loaded.weights):
                inject_with(adapter, loaded.model, loaded.tokenizer, fingerprints, context, loaded.weights).save(path)
            stored = InjectionReport.load(path, dict(subject.model.named_parameters()))
            if stored is None:
                raise StorageError(f"delta {name} was written and cannot be read back: check the disk.")
        return replace(stored, search=vars(searched)) if searched else stored

    def _siblings(self, pending: Sequence[Cell]) -> "Siblings":
        """Inject the siblings that some of the cells need."""
        needed = any(needs_siblings(cell.condition) for cell in pending)
        named = self.subject.profile.siblings(pending[0].method, pending[0].seed) if needed else []
        reports: list[InjectionReport | None] = []
        failure = None
        try:
            reports += [self.injection(method, self.sets[seed], seed) for method, seed in named if seed in self.sets]
        except Exception as error:  # it is the result of the conditions that need them
            failure = CellError(f"a sibling could not be made: {Failed.of(error).reason}")
        return Siblings(self.subject, [report.delta for report in reports if report is not None], failure)

    def _measure_alike(
        self, cells: Sequence[Cell], fingerprints: FingerprintSet, shared: "Shared", leak: tuple[int, ...]
    ) -> Iterator[tuple[Cell, Done | Failed]]:
        """Modify the weights once, then measure every condition that has these."""
        try:
            modified = self._modified(cells[0], fingerprints, shared, leak)
        except Exception as error:  # whatever a modification meets is the result of these conditions
            yield from ((cell, Failed.of(error)) for cell in cells)
            return
        for condition, group in groupby(cells, key=lambda cell: cell.condition):
            yield from self._measure_condition(condition, list(group), fingerprints, shared, modified, leak)

    def _measure_condition(
        self,
        condition: str,
        cells: list[Cell],
        fingerprints: FingerprintSet,
        shared: "Shared",
        modified: "Weights",
        leak: tuple[int, ...],
    ) -> Iterable[tuple[Cell, Done | Failed]]:
        subject, model, proof = self.subject, modified.model, modified.proof
        if condition == ORIGIN and shared.report is not None:
            proof = proof | {"sketch": shared.report.sketch}
        try:
            context = replace(
                subject.adversary_context(model),
                siblings=lambda: shared.siblings.models,
                leaked=[each for number, each in enumerate(fingerprints) if number in leak],
                kept=shared.kept.setdefault((AdversaryContext, leak, *weights_parts(condition)), {}),
                closing=shared.closing,
            )
            attack = Attack.on(adversaries(condition), context)
        except Exception as error:  # whatever an adversary meets is that condition's result
            yield from ((cell, Failed.of(error)) for cell in cells)
            return
        given = Measurement(
            tokenizer=subject.tokenizer,
            fingerprints=fingerprints,
            decoding=subject.settings.decoding,
            prompt=subject.profile.prompt,
            sizes=subject.profile.sizes,
            draw=subject.profile.draw,
            data=subject.datasets,
            injection=shared.report,
            attack=attack,
            prices=lambda model: shared.prices.of(condition, model, subject.datasets.price_items, context),
            own_tokenizer=subject.own_tokenizer,
        )
        for cell in subject.progress(cells, f"measuring {condition}"):
            try:
                with Meter() as meter, budgets_used() as budgets:
                    result, queries = METRICS[cell.metric].measure(model, given)
                own = {"seconds": meter.seconds, "peak_memory": meter.peak_memory, "token_budgets": budgets}
                first = cell.metric == "fsr"
                cost, proven = (own | modified.cost, proof) if first else (own, {})
                yield cell, Done(result, queries, cost, proven, attack.confinement)
            except Exception as error:  # one failed measurement must not take the grid along
                yield cell, Failed.of(error)

    def _modified(self, cell: Cell, fingerprints: FingerprintSet, shared: "Shared", leak: tuple[int, ...]) -> "Weights":
        """Apply the weights parts of a cell's condition.

        What several doses pay for once is in the cost of the first that is measured.
        """
        subject, model, report = self.subject, self.subject.model, shared.report
        proof: dict[str, Any] = {"weights_digest": None}
        if report is not None:
            parameters = dict(model.named_parameters())
            proof["weights_digest"] = digest({name: parameters[name] for name in report.delta.values})
            if report.search is not None:
                proof["injection"] = report.search
        if not changes_weights(cell.condition):
            return Weights(model, proof, {})
        asked = subject.modification(cell.condition)
        base = subject.base_weights if cell.method != CHECKPOINT or asked.needs_base else {}
        context = subject.datasets.modification_context(asked, cell.seed, subject.progress, base)
        prompt = partial(render, subject.tokenizer, prompt=subject.profile.prompt)
        known = [Fingerprint(prompt(each.trigger), each.targets) for each in fingerprints] if asked.needs else []
        context = replace(
            context,
            siblings=lambda: shared.siblings.weights,
            doses=shared.doses,
            kept=shared.kept.setdefault((leak,), {}),
            fingerprints=known if "fingerprints" in asked.needs else (),
            leaked=[each for number, each in enumerate(known) if number in leak],
            inject=injection_of_rival(subject, cell, fingerprints, report) if "method" in asked.needs else None,
            fsr=lambda model: fsr_of(subject, model, fingerprints),
        )
        modification, records = with_searched_rates(subject, cell.condition, context)
        with Meter() as meter:
            modified = modification.apply(model, subject.tokenizer, context)
        proof["modification"] = modified.proof
        if records:
            proof["searches"] = records
        cost = {"modification_seconds": meter.seconds, "modification_peak_memory": meter.peak_memory}
        return Weights(modified.model, proof, cost)


def alike(cells: Sequence[Cell]) -> Iterator[tuple[list[str], list[Cell]]]:
    """Yield the weights parts that conditions have, each list once and in order, with the cells of these conditions."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(weights_parts(cell.condition)), []).append(cell)
    yield from ((list(weights), own) for weights, own in found.items())


@dataclass(frozen=True)
class Weights:
    """A model to measure, the proof of what was done to it, and what that cost."""

    model: Any
    proof: dict[str, Any]
    cost: dict[str, float]


@dataclass(frozen=True)
class Siblings:
    """Checkpoints of the same base that other methods fingerprinted with other sets, if they could be made."""

    subject: Subject
    deltas: Sequence[Delta]
    failure: CellError | None = None  # raised by whoever needs them

    @property
    def weights(self) -> Sequence[Mapping[str, Tensor]]:
        """Return the weights of each by name; the base's own, not copies of them, where these did not change."""
        if self.failure is not None:
            raise self.failure
        return [{**self.subject.base_weights, **delta.values} for delta in self.deltas]

    @cached_property
    def models(self) -> Sequence[Any]:
        """Return each as a resident model."""
        if self.failure is not None:
            raise self.failure
        models = [copy.deepcopy(self.subject.base_model) for _ in self.deltas]
        for model, delta in zip(models, self.deltas, strict=True):
            delta.apply(model)
        return models


@dataclass(frozen=True)
class Shared:
    """What the conditions of one checkpoint share."""

    report: InjectionReport | None
    prices: "Prices"
    siblings: Siblings
    doses: Mapping[tuple[str, ...], Sequence[float]]  # of every curve; see ModificationContext
    closing: contextlib.ExitStack  # closes what adversaries opened
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict)


class Prices:
    """The items that price the conditions of one checkpoint: those of conditions of the same weights in one pass."""

    def __init__(self, conditions: Sequence[str]) -> None:
        """Measure nothing yet."""
        self.conditions = conditions
        self._found: dict[str, Sequence[dict[str, Any]] | FpbenchError] = {}

    def of(self, condition: str, model: Any, items: Items, context: AdversaryContext) -> Sequence[dict[str, Any]]:
        """Return the items of a condition whose weights the model has; raise what went wrong with that condition."""
        if condition not in self._found:
            changed = weights_parts(condition), needs(condition, "leaked")
            alike = [each for each in self.conditions if (weights_parts(each), needs(each, "leaked")) == changed]
            try:
                measured = measure(model, context.tokenizer, alike, items, context)
                self._found |= dict(zip(alike, measured, strict=True))
            except FpbenchError:  # of one of them: each by itself
                for each in alike:
                    try:
                        (self._found[each],) = measure(model, context.tokenizer, [each], items, context)
                    except FpbenchError as error:
                        self._found[each] = error
        found = self._found.pop(condition)
        if isinstance(found, FpbenchError):
            raise found
        return found


def check(subject: Subject, methods: Sequence[str], conditions: Sequence[str]) -> None:
    """Build all methods and modifications without weights; :class:`InputError` for a bad setting or unknown model."""
    quantised = getattr(subject.architecture.config, "quantization_config", None) is not None
    for name in methods:
        subject.method(name).edited(subject.architecture)
    for name in (name for name in conditions if name != ORIGIN):
        if quantised and changes_weights(name):
            raise InputError(
                f"{subject.settings.path} is quantised already: it can be neither trained, pruned, merged nor "
                f"quantised again, found condition {name!r}; ask for {ORIGIN!r} alone."
            )
        subject.modification(name)
        for each in adversaries(name):
            if "base" in each.needs and subject.handed_in and not subject.base:
                raise InputError(f"condition {name!r} reads the unfingerprinted base: name it with --base.")
