"""One loaded model and everything that is measured on it: cell in, record out."""

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fpbench.errors import FpbenchError, InputError, StorageError
from fpbench.fingerprints import FingerprintSet
from fpbench.hub.download import commit_of
from fpbench.methods.base import Base, FingerprintMethod, InjectionContext
from fpbench.models.checkpoints import checkpoint_digest
from fpbench.models.loading import Loading, load_architecture, load_model, remarks
from fpbench.models.meter import Meter
from fpbench.models.prompts import render
from fpbench.models.weights import digest, preserved, state_digest, weights
from fpbench.modifications.base import Modification, create
from fpbench.records.cell import CHECKPOINT, ORIGIN, Cell
from fpbench.records.provenance import code_and_machine, source_of
from fpbench.records.store import Digests, Store, cell_id
from fpbench.registry import METHODS
from fpbench.runs.datasets import Materials
from fpbench.runs.identity import cell_identity, injection_identity
from fpbench.runs.injection import InjectionReport, Spectra, create_method, inject_with
from fpbench.runs.measure import METRICS
from fpbench.runs.profile import ModelSettings, Profile
from fpbench.runs.search import INJECTION_RATES, injection_rate, injection_searches, settled
from fpbench.scoring.engine import budgets_used, limited_to
from fpbench.text import writable

# What came of a cell, and the record that says so.


@dataclass(frozen=True)
class Outcome:
    """A finished measurement."""

    result: Mapping[str, Any]
    queries: list[dict[str, Any]]
    cost: Mapping[str, Any]
    proof: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A measurement that could not be made, and why."""

    reason: str
    traceback: str | None

    @staticmethod
    def of(error: Exception) -> "Failed":
        """The reason in one line; a traceback only for errors that fpbench did not foresee."""
        if isinstance(error, StorageError):
            raise error
        if isinstance(error, FpbenchError):
            return Failed(str(error), None)
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return Failed(writable(reason), writable("".join(traceback.format_exception(error))))


def record_of(
    profile: Profile, cell: Cell, identity: dict[str, Any] | None, outcome: Outcome | Failed
) -> dict[str, Any]:
    """The record of a cell.

    Args:
        profile: that the cell is of.
        cell: what was measured.
        identity: everything that decides the result; ``None`` for a failure before it was known.
        outcome: what came of it.
    """
    record: dict[str, Any] = {
        "protocol": profile.protocol,
        "id": cell_id(identity) if identity else None,
        "cell": dict(vars(cell)),
        "identity": identity,
        "provenance": _provenance(profile, cell),
    }
    if isinstance(outcome, Failed):
        return record | {"status": "failed", "reason": outcome.reason, "traceback": outcome.traceback}
    return record | {"status": "done", "result": outcome.result, "proof": outcome.proof, "cost": outcome.cost}


def _provenance(profile: Profile, cell: Cell) -> dict[str, Any]:
    """Where a record comes from, with the source of its method if it has one."""
    (settings,) = (each for each in profile.models if each.label == cell.model)
    found = code_and_machine() | {"profile": profile.name, "revision": settings.revision}
    if cell.method in profile.methods:
        method = METHODS.get(profile.method_of(cell.method)[0])
        found["method_source"] = source_of(method)
        if about := getattr(method, "about", None):  # of a submission: who, which paper, which licence
            found["submission"] = dict(about)
    return found


Progress = Callable[[Iterable[Any], str], Iterable[Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resident:
    """A model that stays loaded.

    Attributes:
        model: in eval mode with gradients off.
        tokenizer: its tokenizer.
        weights: copies of its parameters as they were loaded.
        digest: of its parameters and buffers as they were loaded.
    """

    model: nn.Module
    tokenizer: Any
    weights: dict[str, Tensor]
    digest: str


class Bench:
    """Measures the cells of one model. The model is loaded once, on first need, and stays as it was loaded."""

    def __init__(
        self,
        profile: Profile,
        settings: ModelSettings,
        folder: Path,
        loading: Loading,
        materials: Materials,
        store: Store,
        progress: Progress,
        base: Path | None = None,
    ) -> None:
        """Read nothing yet: neither the checkpoint ``folder`` nor, where that was handed in, its ``base``."""
        self.profile, self.settings, self.folder, self.loading = profile, settings, folder, loading
        self.materials, self.store, self.progress = materials, store, progress
        self.base = base

    @cached_property
    def digest(self) -> str:
        """Of the checkpoint's files."""
        return checkpoint_digest(self.folder, Digests(self.store.folder / "digests.json").of)

    @cached_property
    def base_digest(self) -> str:
        """Of the files of the base: the checkpoint itself, unless it was handed in."""
        return checkpoint_digest(self.base or self.folder, Digests(self.store.folder / "digests.json").of)

    @cached_property
    def _statistics(self) -> Spectra:
        """Key statistics of the resident model, kept in the run's folder."""
        text = self.materials.digests("statistics") if "statistics" in self.profile.data else {}
        tokens = self.profile.sizes.statistics_tokens
        identity = {"model": self.digest, "dtype": self.loading.precision, "tokens": tokens} | text
        return Spectra(self.store.statistics, identity)

    @cached_property
    def _resident(self) -> "Resident":
        model, tokenizer = self._load(self.folder)
        return Resident(model, tokenizer, weights(model), state_digest(model))

    @cached_property
    def _base_weights(self) -> dict[str, Tensor]:
        """The weights of a handed-in checkpoint's base; none if it is not known."""
        return dict(self._load(self.base)[0].named_parameters()) if self.base else {}

    def _load(self, folder: Path) -> tuple[nn.Module, Any]:
        options = self.loading
        return load_model(
            folder,
            device=options.device,
            dtype=options.precision,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
            tokenizer_of=self.base,
        )

    @cached_property
    def _remarks(self) -> list[str]:
        """What is to be said of a checkpoint that was handed in."""
        return remarks(self.folder, self.base, trust_remote_code=self.loading.trust_remote_code)

    @property
    def model(self) -> nn.Module:
        """The resident model."""
        return self._resident.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._resident.tokenizer

    @property
    def decoding(self) -> dict[str, Any]:
        """The three numbers that are always passed (protocol §2)."""
        return {name: getattr(self.settings, name) for name in ("temperature", "top_p", "top_k")}

    @cached_property
    def _architecture(self) -> nn.Module:
        """The model without its weights, which is all that hyper-parameters depend on."""
        return load_architecture(self.folder, trust_remote_code=self.loading.trust_remote_code)

    def method(self, name: str, **found: Any) -> FingerprintMethod:
        """A method, or a variant of one, with this profile's hyper-parameters and those that a search found."""
        method, given = self.profile.method_of(name)
        return create_method(method, self._architecture, given | found)

    def stand_in(self, name: str) -> FingerprintMethod:
        """The same, with some rate in place of one that a search has yet to find."""
        found = {"learning_rate": INJECTION_RATES[0]} if injection_searches(self, name) else {}
        return self.method(name, **found)

    def modification(self, name: str) -> Modification:
        """The modification of a condition with this profile's settings."""
        return create(name, self.profile.modifications)

    def check(self, methods: Sequence[str], conditions: Sequence[str]) -> None:
        """Build every method and modification once.

        Raises:
            InputError: for a malformed hyper-parameter, setting, or a model that a method does not know.
        """
        quantised = getattr(self._architecture.config, "quantization_config", None) is not None
        for name in methods:
            self.stand_in(name).edited(self._architecture)
        for name in conditions:
            if name != ORIGIN and quantised:
                raise InputError(
                    f"{self.settings.path} is quantised already: it can be neither trained, pruned, merged nor "
                    f"quantised again, found condition {name!r}; ask for {ORIGIN!r} alone."
                )
            if name != ORIGIN:
                self.modification(name)

    def base_identity(self) -> dict[str, Any]:
        """What decides every result on the unfingerprinted base."""
        return {"protocol": self.profile.protocol, "model": self.base_digest, "dtype": self.loading.precision}

    def measure(
        self, cells: Sequence[Cell], fingerprints: FingerprintSet
    ) -> tuple[dict[str, str], Iterator[tuple[Cell, str | None]]]:
        """Measure the cells of one checkpoint that have no record yet; a failure is recorded, not raised.

        Returns:
            What the measurement of each cell is called (:func:`~fpbench.records.store.cell_id`), by the cell's path;
            and the work itself, an iterator that gives each cell once its record is there, with why it failed, if it
            did.

        Raises:
            StorageError: if a record cannot be written.
        """
        identities = {cell: cell_identity(self, cell, fingerprints) for cell in cells}
        names = {cell.path: cell_id(identity) for cell, identity in identities.items()}
        return names, self._recorded(identities, names, fingerprints)

    def _recorded(
        self, identities: Mapping[Cell, dict[str, Any]], names: Mapping[str, str], fingerprints: FingerprintSet
    ) -> Iterator[tuple[Cell, str | None]]:
        """Each cell once it has a record, with why it failed: first those that had one."""
        pending = [cell for cell in identities if self.store.find(cell, names[cell.path]) is None]
        yield from ((cell, None) for cell in identities if cell not in pending)
        if pending:
            budget = self.loading.token_budget
            with limited_to(budget) if budget else contextlib.nullcontext():
                for cell, outcome in self._measured(pending, fingerprints):
                    queries = outcome.queries if isinstance(outcome, Outcome) else []
                    record = record_of(self.profile, cell, identities[cell], outcome)
                    record["provenance"]["commit"] = commit_of(self.folder)
                    if cell.method == CHECKPOINT:
                        record["provenance"]["checkpoint"] = self._remarks
                    self.store.write(cell, record, queries)
                    yield cell, outcome.reason if isinstance(outcome, Failed) else None
            if pending[0].method in self.profile.methods or any(cell.condition != ORIGIN for cell in pending):
                self._verify()

    def _measured(
        self, pending: Sequence[Cell], fingerprints: FingerprintSet
    ) -> Iterable[tuple[Cell, Outcome | Failed]]:
        """Inject, then measure condition by condition, each on the weights as they were injected."""
        try:
            report = self.injection(pending[0].method, fingerprints, pending[0].seed)
        except Exception as error:  # an adapter may raise anything; its cells then show as failed
            yield from ((cell, Failed.of(error)) for cell in pending)
            return
        for condition, group in groupby(pending, key=lambda cell: cell.condition):
            # Nothing is to be put back where nothing changes, and bitsandbytes repacks its weights as it pleases.
            changes = report is not None or condition != ORIGIN
            with preserved(self.model, self._resident.weights) if changes else contextlib.nullcontext():
                if report is not None:
                    report.delta.apply(self.model)
                yield from self._measure_condition(condition, list(group), fingerprints, report)

    def _verify(self) -> None:
        """Check by digest that the resident model is as it was loaded; load it anew if not."""
        if state_digest(self.model) != self._resident.digest:
            logger.warning("the weights of %s were not restored bit for bit: it is loaded again.", self.settings.label)
            del self._resident

    def injection(self, method: str, fingerprints: FingerprintSet, seed: int) -> InjectionReport | None:
        """The stored injection, or a new one that is stored and read back before anything is measured."""
        if method not in self.profile.methods:
            return None
        rate = injection_rate(self, method, fingerprints) if injection_searches(self, method) else None
        found = {"learning_rate": rate.learning_rate} if rate else {}
        name = cell_id(injection_identity(self, method, fingerprints, seed))
        label = f"{self.settings.label}-{fingerprints.name}-{method}-{seed}-{name}"
        if (stored := self.store.load_injection(label, dict(self.model.named_parameters()))) is not None:
            return stored
        adapter, context = self.method(method, **found), self.injection_context(seed)
        with preserved(self.model, self._resident.weights):
            report = inject_with(adapter, self.model, self.tokenizer, fingerprints, context, self._resident.weights)
        self.store.save_injection(label, report)
        read = self.store.load_injection(label, dict(self.model.named_parameters()))
        if read is None:
            raise StorageError(f"delta {label} was written and cannot be read back: check the disk.")
        return read

    def injection_context(self, seed: int) -> InjectionContext:
        """What adapters may know on this model."""
        named = self.profile.data
        return InjectionContext(
            seed=seed,
            device=self.loading.device,
            progress=self.progress,
            render=lambda trigger: render(self.tokenizer, trigger, self.profile.prompt),
            texts=self.materials.statistics if "statistics" in named else (),
            pairs=self.materials.pairs if "zsre" in named else (),
            statistics_tokens=self.profile.sizes.statistics_tokens,
            known_statistics=self._statistics,
            alone=self._statistics.making,
            tokenizer=self.tokenizer,
            base=Base(self.folder, self.loading, self.profile.prompt),
        )

    def _measure_condition(
        self,
        condition: str,
        cells: list[Cell],
        fingerprints: FingerprintSet,
        report: InjectionReport | None,
    ) -> Iterable[tuple[Cell, Outcome | Failed]]:
        """Modify the resident model and measure it; ``preserved`` around this brings it back."""
        model, method = self.model, cells[0].method
        proof: dict[str, Any] = {"weights_digest": self._touched_digest(report)}
        spent: dict[str, float] = {}
        if report is not None and injection_searches(self, method):
            proof |= {"injection": vars(injection_rate(self, method, fingerprints))}
        try:
            if condition != ORIGIN:
                asked, base = self.modification(condition), self._resident.weights
                if method == CHECKPOINT:
                    base = self._base_weights if asked.needs_base else {}
                context = self.materials.modification_context(asked, cells[0].seed, self.progress, base)
                modification, records = settled(self, condition, context)
                with Meter() as meter:
                    modified = modification.apply(self.model, self.tokenizer, context)
                model = modified.model
                proof |= {"modification": modified.proof}
                spent = {"modification_seconds": meter.seconds, "modification_peak_memory": meter.peak_memory}
                proof |= {"searches": records} if records else {}
        except Exception as error:  # whatever a modification meets is that condition's result
            for cell in cells:
                yield cell, Failed.of(error)
            return
        for cell in self.progress(cells, f"measuring {condition}"):
            try:
                with Meter() as meter, budgets_used() as budgets:
                    result, queries = METRICS[cell.metric](self, model, fingerprints, report)
                cost = {"seconds": meter.seconds, "peak_memory": meter.peak_memory, "token_budgets": budgets}
                first = cell.metric == "fsr"
                yield cell, Outcome(result, queries, cost | spent if first else cost, proof if first else {})
            except Exception as error:  # one failed measurement must not take the grid along
                yield cell, Failed.of(error)

    def _touched_digest(self, report: InjectionReport | None) -> str | None:
        """Digest of the injected parameters as they are in the model now."""
        if report is None:
            return None
        parameters = dict(self.model.named_parameters())
        return digest({name: parameters[name] for name in report.delta.values})
