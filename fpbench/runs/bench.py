"""One loaded model and everything that is measured on it: cell in, record out."""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fpbench.errors import FpbenchError, StorageError
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.models.deltas import digest, preserved
from fpbench.models.loading import checkpoint_digest, load_model
from fpbench.models.meter import Meter
from fpbench.models.prompts import render
from fpbench.models.scoring import limited_to
from fpbench.modifications.base import Modification
from fpbench.modifications.composition import against_base, create, parts
from fpbench.runs.development import injection_identity, injection_rate, injection_searches
from fpbench.runs.injection import InjectionReport, create_method, inject_with
from fpbench.runs.materials import Materials
from fpbench.runs.measure import METRICS
from fpbench.runs.plan import CHECKPOINT, Cell
from fpbench.runs.profile import ORIGIN, ModelSettings, Profile
from fpbench.runs.provenance import code_and_machine
from fpbench.runs.rates import INJECTION_RATES
from fpbench.runs.search import SEARCH, searches, settled
from fpbench.runs.sets import data_of_near
from fpbench.runs.spectra import Spectra
from fpbench.runs.store import SCHEMA, Store, cell_id

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
# Which data decide a result: a record is valid only for the very same ones.
DATA_OF_METHODS = ("statistics", "zsre")
DATA_OF_CONDITIONS = {
    "finetune_alpaca": ("alpaca",),
    "finetune_math": ("math",),
    "ria30": ("calibration",),
    "ria40": ("calibration",),
    "fsft_alpaca": ("alpaca",),
    "fsft_math": ("math",),
}
DATA_OF_METRICS = {"triggers": ("alpaca",), "near": ("alpaca",), "bands": ("alpaca",)}


@dataclass(frozen=True)
class Loading:
    """How models are loaded: what the command line says about it."""

    device: str
    dtype: str | None = None
    revision: str | None = None
    token_budget: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


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
        """Read nothing yet but digests: of the checkpoint ``folder`` and, where it was handed in, of its ``base``."""
        self.profile, self.settings, self.folder, self.loading = profile, settings, folder, loading
        self.materials, self.store, self.progress = materials, store, progress
        self.digest = checkpoint_digest(folder)
        self.base, self.base_digest = base, checkpoint_digest(base) if base else self.digest

    @cached_property
    def _statistics(self) -> Spectra:
        """Key statistics of the resident model, kept in the run's folder."""
        text = self.materials.digests("statistics") if "statistics" in self.profile.data else {}
        dtype = str(self.model.dtype).removeprefix("torch.")
        identity = {"model": self.digest, "dtype": dtype, "tokens": self.profile.sizes.statistics_tokens} | text
        return Spectra(self.store.statistics, identity)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        return self._load(self.folder)

    @cached_property
    def _base_weights(self) -> dict[str, Tensor]:
        """The weights of a handed-in checkpoint's base; none if it is not known."""
        return dict(self._load(self.base)[0].named_parameters()) if self.base else {}

    def _load(self, folder: Path) -> tuple[nn.Module, Any]:
        options = self.loading
        return load_model(
            folder,
            device=options.device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        )

    @property
    def model(self) -> nn.Module:
        """The resident model."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded[1]

    @property
    def decoding(self) -> dict[str, Any]:
        """The three numbers that are always passed (protocol §2)."""
        return {name: getattr(self.settings, name) for name in ("temperature", "top_p", "top_k")}

    def method(self, name: str, **found: Any) -> FingerprintMethod:
        """A method, or a variant of one, with this profile's hyper-parameters and those that a search found."""
        method, given = self.profile.method_of(name)
        return create_method(method, self.model, given | found)

    def modification(self, name: str) -> Modification:
        """The modification of a condition with this profile's settings."""
        return create(name, self.profile.modifications)

    def _needs_base(self, condition: str) -> bool:
        """Whether a condition compares with the unfingerprinted base, or searches on it."""
        return against_base(condition) or searches(self.modification(condition))

    def check(self, methods: Sequence[str], conditions: Sequence[str]) -> None:
        """Build every method and modification once.

        Raises:
            InputError: for a malformed hyper-parameter, setting, or a model that a method does not know.
        """
        for name in methods:
            self.method(name, **self._stand_in(name)).edited(self.model)
        for name in conditions:
            if name != ORIGIN:
                self.modification(name)

    def _stand_in(self, method: str) -> dict[str, Any]:
        """A rate in place of one that a search has yet to find, so that the method can be built."""
        return {"learning_rate": INJECTION_RATES[0]} if injection_searches(self, method) else {}

    def base_identity(self) -> dict[str, Any]:
        """What decides every result on the unfingerprinted base."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"protocol": self.profile.protocol, "model": self.base_digest, "dtype": dtype}

    def injection_identity(self, method: str, fingerprints: FingerprintSet, seed: int) -> dict[str, Any]:
        """Everything that decides the weights of a checkpoint."""
        name, _ = self.profile.method_of(method)
        identity = self.base_identity() | {"model": self.digest, "method": name, "seed": seed}
        if method in self.profile.methods:
            adapter = self.method(method, **self._stand_in(method))
            identity |= {
                "version": adapter.version,
                "hyperparameters": adapter.config.model_dump(mode="json"),
                "fingerprints": fingerprints.digest,
                "prompt": self.profile.prompt,
                "statistics_tokens": self.profile.sizes.statistics_tokens,
                "data": self.materials.digests(*(name for name in DATA_OF_METHODS if name in self.profile.data)),
            }
            if injection_searches(self, method):
                # The settings as given: an identity needs no training.
                identity["hyperparameters"]["learning_rate"] = SEARCH
                identity["search"] = injection_identity(self, method, fingerprints)
        return identity

    def identity(self, cell: Cell, fingerprints: FingerprintSet) -> dict[str, Any]:
        """Everything that decides a result, and nothing else: no batch size, engine, path or time."""
        identity = self.injection_identity(cell.method, fingerprints, cell.seed) | {
            "fingerprints": fingerprints.digest,
            "condition": cell.condition,
            "metric": cell.metric,
            "prompt": self.profile.prompt,
            "decoding": self.decoding,
        }
        if cell.condition != ORIGIN:
            modification = self.modification(cell.condition)
            data = {name for part in parts(cell.condition) for name in DATA_OF_CONDITIONS.get(part, ())}
            identity["modification"] = modification.identity | {"data": self.materials.digests(*data)}
            if cell.method == CHECKPOINT and self._needs_base(cell.condition):
                identity["base"] = self.base_digest if self.base else None
        if cell.metric not in ("fsr", "cost"):
            names = DATA_OF_METRICS.get(cell.metric, ()) or tuple(self.materials.utility_sources)
            identity["sizes"] = self.profile.sizes.model_dump(mode="json")
            identity["metric_data"] = self.materials.digests(*names) | data_of_near(cell.metric, fingerprints)
        return identity

    def measure(self, cells: Sequence[Cell], fingerprints: FingerprintSet) -> None:
        """Measure the cells of one checkpoint that have no record yet; a failure is recorded, not raised.

        Raises:
            StorageError: if a record cannot be written.
        """
        with limited_to(self.loading.token_budget) if self.loading.token_budget else contextlib.nullcontext():
            self._measure(cells, fingerprints)

    def _measure(self, cells: Sequence[Cell], fingerprints: FingerprintSet) -> None:
        identities = {cell: self.identity(cell, fingerprints) for cell in cells}
        pending = [cell for cell in cells if self.store.find(cell, identities[cell]) is None]
        if not pending:
            return
        method, seed = pending[0].method, pending[0].seed
        try:
            report = self.injection(method, fingerprints, seed)
        except Exception as error:  # an adapter may raise anything; its cells then show as failed
            for cell in pending:
                self._write(cell, identities[cell], Failed.of(error))
            return
        for condition, group in groupby(pending, key=lambda cell: cell.condition):
            with preserved(self.model) as originals:
                if report is not None:
                    report.delta.apply(self.model)
                outcomes = self._measure_condition(condition, list(group), fingerprints, report, originals)
                for cell, outcome in outcomes:
                    self._write(cell, identities[cell], outcome)

    def injection(self, method: str, fingerprints: FingerprintSet, seed: int) -> InjectionReport | None:
        """The stored injection, or a new one that is stored and read back before anything is measured."""
        if method not in self.profile.methods:
            return None
        rate = injection_rate(self, method, fingerprints) if injection_searches(self, method) else None
        found = {"learning_rate": rate.learning_rate} if rate else {}
        name = cell_id(self.injection_identity(method, fingerprints, seed))
        label = f"{self.settings.label}-{fingerprints.name}-{method}-{seed}-{name}"
        if (stored := self.store.load_injection(label, dict(self.model.named_parameters()))) is not None:
            return stored
        context = self.injection_context(seed)
        with preserved(self.model):
            report = inject_with(self.method(method, **found), self.model, self.tokenizer, fingerprints, context)
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
            tokenizer=self.tokenizer,
        )

    def _measure_condition(
        self,
        condition: str,
        cells: list[Cell],
        fingerprints: FingerprintSet,
        report: InjectionReport | None,
        originals: Mapping[str, Tensor],
    ) -> Iterable[tuple[Cell, "Outcome | Failed"]]:
        """Modify the resident model and measure it; ``preserved`` around this brings it back."""
        model, method = self.model, cells[0].method
        proof: dict[str, Any] = {"weights_digest": self._touched_digest(report)}
        if report is not None and injection_searches(self, method):
            proof |= {"injection": vars(injection_rate(self, method, fingerprints))}
        try:
            if condition != ORIGIN:
                base = originals
                if method == CHECKPOINT:
                    base = self._base_weights if self._needs_base(condition) else {}
                context = self.materials.modification_context(cells[0].seed, self.progress, base)
                modification, records = settled(self, condition, context)
                with Meter() as meter:
                    modified = modification.apply(self.model, self.tokenizer, context)
                model = modified.model
                proof |= {"modification": modified.proof | {"seconds": meter.seconds}}
                proof |= {"searches": records} if records else {}
        except Exception as error:  # whatever a modification meets is that condition's result
            for cell in cells:
                yield cell, Failed.of(error)
            return
        for cell in self.progress(cells, f"measuring {condition}"):
            try:
                with Meter() as meter:
                    result, queries = METRICS[cell.metric](self, model, fingerprints, report)
                cost = {"seconds": meter.seconds, "peak_memory": meter.peak_memory}
                yield cell, Outcome(result, queries, cost, proof if cell.metric == "fsr" else {})
            except Exception as error:  # one failed measurement must not take the grid along
                yield cell, Failed.of(error)

    def _touched_digest(self, report: InjectionReport | None) -> str | None:
        """Digest of the injected parameters as they are in the model now."""
        if report is None:
            return None
        parameters = dict(self.model.named_parameters())
        return digest({name: parameters[name] for name in report.delta.values})

    def _write(self, cell: Cell, identity: dict[str, Any], outcome: "Outcome | Failed") -> None:
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "protocol": self.profile.protocol,
            "id": cell_id(identity),
            "cell": dict(vars(cell)),
            "identity": identity,
            "provenance": code_and_machine() | {"profile": self.profile.name, "revision": self.settings.revision},
        }
        if isinstance(outcome, Failed):
            record |= {"status": "failed", "reason": outcome.reason, "traceback": outcome.traceback}
            self.store.write(cell, record, [])
        else:
            record |= {"status": "done", "result": outcome.result, "proof": outcome.proof, "cost": outcome.cost}
            self.store.write(cell, record, outcome.queries)


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
        return Failed(reason, "".join(traceback.format_exception(error)))
