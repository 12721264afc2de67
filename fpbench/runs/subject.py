"""One model of a run: its files, the model loaded from them, and everything that both decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fpbench.adversaries.base import AdversaryContext
from fpbench.adversaries.conditions import adversaries, create, needs
from fpbench.methods.base import Base, FingerprintMethod, InjectionContext
from fpbench.methods.null_space import VERSION
from fpbench.models.checkpoints import base_of_adapter, checkpoint_digest
from fpbench.models.handed_in import OwnTokenizer, remarks
from fpbench.models.loading import load_architecture
from fpbench.models.meter import Progress
from fpbench.models.prompts import render
from fpbench.models.weights import state_digest, weights
from fpbench.modifications.base import Modification
from fpbench.records.store import Digests, Store
from fpbench.runs.datasets import Datasets
from fpbench.runs.injection import Spectra, create_method
from fpbench.runs.plan import Job

INJECTION_RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)  # the grid of the search for an injection's learning rate


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with gradients off, with copies and the digest of its weights as they were loaded."""

    model: nn.Module
    tokenizer: Any
    weights: dict[str, Tensor]
    digest: str


class Subject:
    """A model of a job, or the checkpoint that was handed in beside it. Loaded once, when it is first needed."""

    def __init__(self, job: Job, label: str, datasets: Datasets, progress: Progress, handed_in: bool = False) -> None:
        """Read nothing yet; with ``handed_in`` take the checkpoint that was handed in, whose base may be unknown."""
        self.job, self.profile, self.loading, self.settings = job, job.profile, job.loading, job.settings(label)
        self.datasets, self.progress, self.store = datasets, progress, Store(job.out)
        self.handed_in, self.folder = handed_in, job.folder(label, handed_in)
        self.base = job.folders.get(label) if handed_in else None

    @cached_property
    def digest(self) -> str:
        """Digest of the checkpoint's files."""
        return self._digest(self.folder)

    @cached_property
    def base_digest(self) -> str:
        """Digest of the files of the base: of the checkpoint itself, unless it was handed in."""
        return self._digest(self.base) if self.base else self.digest

    def _digest(self, folder: Path) -> str:
        return checkpoint_digest(folder, Digests(self.store.folder / "digests.json").of, base=self.base)

    @cached_property
    def loaded(self) -> Loaded:
        """The model in memory; delete the attribute to have it loaded again."""
        model, tokenizer = self.loading.load(self.folder, self.tokenizer_of)
        return Loaded(model, tokenizer, weights(model), state_digest(model))

    @property
    def model(self) -> nn.Module:
        """The loaded model."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that scores it: its base's, where that is known, else its own."""
        return self.loaded.tokenizer

    @cached_property
    def base_weights(self) -> Mapping[str, Tensor]:
        """The weights of the unfingerprinted base, which a model of the job is itself; none if it is not known."""
        if not self.handed_in:
            return self.loaded.weights
        return dict(self.loading.load(self.base)[0].named_parameters()) if self.base else {}

    @cached_property
    def base_model(self) -> nn.Module:
        """The unfingerprinted base, resident beside the loaded model; its folder is known."""
        return self.loading.load(self.base or self.folder, self.base)[0]

    def adversary_context(self, model: nn.Module) -> AdversaryContext:
        """Return what adversaries may know of a model, and have."""
        return AdversaryContext(
            model,
            self.tokenizer,
            self.settings.decoding,
            render=lambda text: render(self.tokenizer, text, self.profile.prompt),
            served=lambda text: render(self.tokenizer, text, self.profile.prompt),
            seed=self.profile.draw,  # not the run's, so that a price holds for all seeds
            instructions=[row["instruction"] for row in self.datasets.benign] if "alpaca" in self.profile.data else (),
            base=(lambda: self.base_model) if self.base or not self.handed_in else None,
            checkpoint=Base(self.base or self.folder, self.loading, self.profile.prompt),
        )

    @cached_property
    def architecture(self) -> nn.Module:
        """The model without its weights, which is all that hyper-parameters depend on."""
        return load_architecture(self.folder, trust_remote_code=self.loading.trust_remote_code, base=self.base)

    @cached_property
    def remarks(self) -> list[str]:
        """Remarks on a checkpoint that was handed in."""
        return remarks(self.folder, self.own_tokenizer, self.base)

    @cached_property
    def own_tokenizer(self) -> OwnTokenizer | None:
        """The tokenizer of a checkpoint that was handed in, where it is not that of its base, which scores it."""
        if self.tokenizer_of is None:
            return None
        return OwnTokenizer.of(self.folder, self.tokenizer_of, trust_remote_code=self.loading.trust_remote_code)

    @cached_property
    def tokenizer_of(self) -> Path | None:
        """The base whose tokenizer scores a checkpoint that was handed in, if it is named or an adapter names it."""
        return (self.base or base_of_adapter(self.folder)) if self.handed_in else None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides every result on the unfingerprinted base."""
        return {"protocol": self.profile.protocol, "model": self.base_digest, "dtype": self.loading.precision}

    def method(self, name: str, **found: Any) -> FingerprintMethod:
        """Return a method, or a variant of one, with this profile's hyper-parameters and those that a search found."""
        method, given = self.profile.method_of(name)
        if self.profile.searches_rate(name):  # until a rate is found, the smallest of the grid stands in
            given = given | {"learning_rate": INJECTION_RATES[0]}
        return create_method(method, self.architecture, given | found)

    def modification(self, name: str) -> Modification:
        """Return the weights part of a condition with this profile's settings."""
        return create(name, self.profile.modifications)

    def leaks(self, condition: str, count: int) -> Sequence[Sequence[int]]:
        """Return which of ``count`` fingerprints leak together, each time; none where a condition needs no leak.

        Raises:
            InputError: if there are too few of them.
        """
        if not needs(condition, "leaked"):
            return ()
        parts: list[Any] = [*self.modification(condition).parts, *adversaries(condition)]
        return max((each.leaks(count) for each in parts if "leaked" in each.needs), key=lambda each: len(each[0]))

    def injection_context(self, seed: int) -> InjectionContext:
        """Return what adapters may know on this model."""
        named = self.profile.data
        return InjectionContext(
            seed=seed,
            device=self.loading.device,
            progress=self.progress,
            render=lambda trigger: render(self.tokenizer, trigger, self.profile.prompt),
            texts=self.datasets.statistics if "statistics" in named else (),
            pairs=self.datasets.pairs if "zsre" in named else (),
            statistics_tokens=self.profile.sizes.statistics_tokens,
            known_statistics=self._statistics,
            statistics_lock=self._statistics.making,
            tokenizer=self.tokenizer,
            base=Base(self.folder, self.loading, self.profile.prompt),
        )

    @cached_property
    def _statistics(self) -> Spectra:
        text = self.datasets.digests("statistics") if "statistics" in self.profile.data else {}
        tokens = self.profile.sizes.statistics_tokens
        identity = {"version": VERSION, "model": self.digest, "dtype": self.loading.precision, "tokens": tokens} | text
        return Spectra(self.store.statistics, identity)
