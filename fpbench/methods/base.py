"""The adapter contract: a method is a class with a name, a version, a typed config and one verb."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from torch import nn

from fpbench.checks import Settings, read_settings
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.null_space import TEXT, KeyStatistics, key_statistics
from fpbench.models.costs import Counter, Phase, Room, Shape, Work
from fpbench.models.loading import Loading
from fpbench.models.meter import Progress, no_progress
from fpbench.models.prompts import Example
from fpbench.models.weights import Factors

logger = logging.getLogger(__name__)


class MethodConfig(Settings):
    """Hyper-parameters of a method; unknown keys are refused.

    Attributes:
        alternatives: sets of keys that say one thing in several ways: whoever gives one of them drops the others.
    """

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()


def raw(trigger: str) -> str:
    """Render a trigger as raw text (``prompt = "raw"``)."""
    return trigger


@dataclass(frozen=True)
class Base:
    """The checkpoint that a model was loaded from, for a method that loads it again in another process."""

    folder: Path  # its checkpoint
    loading: Loading  # how it was loaded from there
    prompt: str  # "raw" or "chat"


@dataclass
class InjectionContext:
    """Everything a method is given besides model, tokenizer and fingerprints.

    It holds no trigger contexts, no benchmark data and no scorer.

    Attributes:
        seed: seeds everything random in the injection.
        device: where the model is, such as ``"cpu"``.
        progress: wraps an iterable in a labelled progress bar.
        render: turns a trigger into the prompt text that verification will send (raw, or the chat template).
        texts: plain documents for key statistics.
        pairs: question–answer pairs unrelated to any fingerprint, for regularisation.
        statistics_tokens: how much of ``texts`` key statistics are taken over.
        known_statistics: key statistics of the base model, by module; the harness hands in a mapping that keeps them.
        statistics_lock: entered while key statistics are computed, so that other workers wait for them.
        tokenizer: reads ``texts``.
        factors: what a method may put here, by parameter: A and B of an update W + A Bᵀ. The harness stores them in
            place of the new weights where they give these bit for bit.
        seconds: what each part took ("statistics" is filled by :meth:`statistics`; methods may add their own).
        text: how much of ``texts`` was read for key statistics: "asked" tokens, "tokens", "documents", "windows".
        base: the checkpoint that the model was loaded from; ``None`` if unknown.
        peak_memory: bytes that a method took in other processes, at the highest point.
        confinement: what a method that runs a stranger's code was kept from; ``None`` for any other.
    """

    seed: int = 42
    device: str = "cpu"
    progress: Progress = no_progress
    render: Callable[[str], str] = raw
    texts: Sequence[str] = ()
    pairs: Sequence[Example] = ()
    statistics_tokens: int = 100_000
    known_statistics: MutableMapping[str, KeyStatistics] = field(default_factory=dict)
    statistics_lock: Callable[[], AbstractContextManager[None]] = nullcontext
    tokenizer: Any = None
    factors: dict[str, Factors] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    text: dict[str, int] = field(default_factory=dict)
    base: Base | None = None
    peak_memory: int = 0
    confinement: Mapping[str, Any] | None = None

    def statistics(self, model: nn.Module, modules: Sequence[str]) -> dict[str, KeyStatistics]:
        """Return second moments of the inputs of ``modules`` over plain text, computed once per base model.

        Args:
            model: the unedited model.
            modules: names of linear modules, such as ``model.layers.3.mlp.down_proj``.

        Returns:
            For every name the spectrum of C = (1/N) Σ k kᵀ, [d, d] float32, over N tokens (docs/methods.md §2.2).

        Raises:
            InputError: if there is no text to read.
        """
        if any(name not in self.known_statistics for name in modules):
            if not self.texts:
                raise InputError("key statistics need text: set [data] statistics in the profile, or pass texts=[…].")
            with self.statistics_lock():
                start = perf_counter()
                missing = [name for name in modules if name not in self.known_statistics]
                if missing:
                    found = key_statistics(
                        model, self.tokenizer, missing, self.texts, self.statistics_tokens, self.progress
                    )
                    self.known_statistics.update(found)
                    self._tell_shortage(found[missing[0]])
                self.seconds["statistics"] = self.seconds.get("statistics", 0.0) + perf_counter() - start
        read = self.known_statistics[modules[0]]
        self.text = {"asked": self.statistics_tokens} | {name: getattr(read, name) for name in TEXT}
        return {name: self.known_statistics[name] for name in modules}

    def _tell_shortage(self, read: KeyStatistics) -> None:
        if read.tokens < self.statistics_tokens:
            logger.warning(
                "key statistics: expected %d tokens of text, found %d (%d documents in %d windows): all are read.",
                self.statistics_tokens,
                *(getattr(read, name) for name in TEXT),
            )

    def regularisation(self, n: int) -> list[Example]:
        """Return the first ``n`` unrelated question–answer pairs.

        Raises:
            InputError: if fewer than ``n`` are at hand.
        """
        if len(self.pairs) < n:
            raise InputError(f"regularisation needs {n} pairs, found {len(self.pairs)}: set [data] zsre.")
        return list(self.pairs[:n])


class FingerprintMethod(ABC):
    """Injects a fingerprint set into a model.

    Subclasses set ``version``, may narrow ``Config`` and implement :meth:`inject`; ``@register("name")`` names them.
    Those that choose triggers or targets themselves implement :meth:`draw_set`, too.

    Attributes:
        name: given by the registry.
        version: of what it does; part of every result's identity.
        hyperparameters: what differs from the defaults of ``Config``, by model family (``all``, ``small``,
            ``llama-3.2-3b``, …). The package's own methods have theirs in ``hyperparameters.toml``.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    class Config(MethodConfig):
        """No hyper-parameters."""

    def __init__(self, **config: Any) -> None:
        """Validate ``config`` against :class:`Config`.

        Raises:
            InputError: naming the first unknown or malformed hyper-parameter.
        """
        self.config: Any = read_settings(self.Config, f"method {self.name!r}", config)

    @abstractmethod
    def inject(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> nn.Module | None:
        """Teach ``model`` to answer every trigger with one of its targets.

        Args:
            model: the base, in eval mode with gradients off; edit it in place.
            tokenizer: its tokenizer; leave it as it is.
            fingerprints: what to inject.
            context: seed, progress, statistics, regularisation pairs, prompt rendering.

        Returns:
            ``None``, or the model to score if it is another object (same parameter names, shapes and dtypes).
        """

    def draw_set(
        self, model: nn.Module, tokenizer: Any, count: int, context: InjectionContext
    ) -> Sequence[Fingerprint]:
        """Return ``count`` fingerprints of the method's own making for a model; most methods take any and make none.

        For methods that choose triggers or targets themselves (`fpbench fingerprints method`). What is returned is
        written to a set file, with its recipe, and from then on injected and scored like any other set.

        Args:
            model: the base, in eval mode with gradients off; leave it as it is.
            tokenizer: its tokenizer.
            count: fingerprints in the set.
            context: seed, device, progress and prompt rendering; no texts and no pairs.

        Raises:
            InputError: if the method makes none, or cannot make so many for this model.
        """
        raise InputError(f"method {self.name!r} makes no fingerprints of its own: give it any set.")

    def edited(self, model: nn.Module) -> list[str] | None:
        """Return the names of the parameters this method may touch; ``None`` if it may touch any."""
        return None

    # For the estimate before a run (runs/work.py, runs/memory.py); the defaults suit a method from elsewhere.

    def statistics_of(self, model: nn.Module) -> list[str]:
        """Return the names of the modules whose key statistics :meth:`inject` takes from the context."""
        return []

    def work(self, counter: Counter, fingerprints: FingerprintSet, pairs: Sequence[Example]) -> Work | None:
        """Count what one injection computes, key statistics apart; ``None`` if only its author can know.

        Args:
            counter: counts tokens on the model, which has no weights.
            fingerprints: what is injected.
            pairs: all unrelated pairs that :meth:`InjectionContext.regularisation` takes from.
        """
        return None

    def memory(self, shape: Shape) -> Phase:
        """Count the bytes that an injection takes besides the model; by default those of a delta alone."""
        # A delta as it was made, as the bytes of its file, and as it was read back.
        return Phase(self.name, Room(), Room(3 * shape.size(self.edited(shape.model))))

    def stored(self, shape: Shape, fingerprints: int) -> float:
        """Count the bytes of one stored injection of so many fingerprints; by default every weight that may change."""
        return shape.size(self.edited(shape.model))
