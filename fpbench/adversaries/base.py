"""An adversary: what a thief puts around a stolen model, with a dose, a threat level and a price (docs/adversaries.md).

Three parts, each optional: the query that reaches the model (input), the distribution it answers from (sampler), and
its weights (a :class:`~fpbench.modifications.base.Modification`). Nothing here loads torch at the top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fpbench.errors import CellError, InputError
from fpbench.models.prompts import Rendered
from fpbench.modifications.base import Dose, Modification, amount_of, in_turn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.fingerprints import Fingerprint
    from fpbench.methods.base import Base
    from fpbench.scoring.responses import Decoding, Sampler

    Prompts = Sequence[Sequence[int]]

LEVELS = ("L0", "L1", "L2", "L3", "L4")


@dataclass(frozen=True)
class AdversaryContext:
    """Hold what any adversary may know and have; its class says which of it a thief of its threat level has.

    Attributes:
        model: the stolen model, in eval mode, as the weights parts left it.
        decoding: of the responses.
        render: turns a query into the prompt text that the model is given.
        served: the same where the model is verified, whatever a price is measured on; what is found out beforehand is
            found out so.
        seed: of everything random.
        instructions: benign queries, on which nothing is trained and nothing else is measured.
        base: loads the unfingerprinted base; ``None`` where it is not known.
        siblings: loads checkpoints of the same base that other methods fingerprinted with other sets; may be empty.
        leaked: pairs of the fingerprint that a thief got hold of; empty but for who needs them.
        checkpoint: where the base lies, for an adversary that runs in another process; ``None`` where that is unknown.
        kept: what adversaries found out about this very model, by keys of their own: several doses pay once for it.
        closing: closes, once nothing more is asked, what they opened.
    """

    model: nn.Module
    tokenizer: Any
    decoding: Decoding
    render: Callable[[str], str] = lambda text: text
    seed: int = 42
    instructions: Sequence[str] = ()
    base: Callable[[], nn.Module] | None = None
    siblings: Callable[[], Sequence[nn.Module]] = field(default=tuple)
    leaked: Sequence[Fingerprint] = ()
    served: Callable[[str], str] = lambda text: text
    checkpoint: Base | None = None
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    closing: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)


class Adversary:
    """One thief. Subclasses declare level, payment and dose, and overwrite those parts that they have.

    Attributes:
        name: given by the registry.
        version: of what it does; part of every result's identity.
        level: threat level, ``"L0"`` to ``"L4"``: what the thief knows and has.
        pays: what the thief pays with, in multiples of serving the model: ``inference`` (forward passes a token),
            ``data`` (training tokens), ``parameters`` (further resident models).
        dose: its scale; a dose of 0, where it is accepted, does nothing.
        needs: what of :class:`AdversaryContext` it cannot do without: ``"base"``, ``"siblings"``, ``"instructions"``,
            ``"leaked"``.
        finds: whether what it does rests on what it found out about this very model beforehand, and so has a price of
            its own on every checkpoint.
        steps: from which step on the sampler leaves the logits alone; ``None`` for never. Steps count from the first
            generated token, white space included.
        control: name of the random control of the same energy that stands beside it; empty for none.
        confinement: what one that runs a stranger's code was kept from; ``None`` for any other.
    """

    name: str
    version: ClassVar[str] = "1"
    level: ClassVar[str] = "L1"
    pays: ClassVar[Mapping[str, float]] = {"inference": 1}
    dose: ClassVar[Dose | None] = None
    needs: ClassVar[Sequence[str]] = ()
    finds: ClassVar[bool] = False
    steps: int | None = None
    control: ClassVar[str] = ""
    confinement: Mapping[str, Any] | None = None

    def __init__(self, amount: float | None = None) -> None:
        """Take the dose, by default the class's own; :class:`InputError` for one out of range."""
        self.amount = amount_of(self.name, self.dose, amount)

    @property
    def identity(self) -> dict[str, Any]:
        """Version and dose: they decide the outcome, with model, data and seed."""
        return {"version": self.version} | ({"dose": self.amount} if self.dose else {})

    def prepare(self, context: AdversaryContext) -> None:
        """Look at the model once, before any query; by default keep the context as ``self.context``."""
        self.context = context

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query that the model is given in place of ``text``; several, of which one is drawn; or a refusal.

        The probabilities of several are averaged; ``None`` refuses, and the answer begins with no target. A
        :class:`~fpbench.models.prompts.Rendered` text has the chat template in it and is given to the model as it is.
        """
        return text

    def sampler(self, prompt: Sequence[int], prefix: Sequence[int], logits: Tensor) -> Tensor:
        """Return the logits [V] to sample from in place of ``logits`` [V], before temperature, top-k and top-p.

        ``prompt`` and ``prefix`` are token ids: what the model was given, and the response so far. The result depends
        on nothing else, so that FSR stays exact.
        """
        return logits

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Apply :meth:`sampler` to n nodes at once, logits [n, V]; overwrite it where a whole batch is cheaper."""
        import torch

        rows = zip(prompts, prefixes, logits, strict=True)
        return torch.stack([self.sampler(prompt, prefix, row) for prompt, prefix, row in rows])

    def leaks(self, count: int) -> Sequence[Sequence[int]]:
        """Return which of ``count`` fingerprints leak together, each time; by default each alone."""
        return in_turn(count, count)

    def weights(self) -> Modification | None:
        """Return what happens to the weights before anything is asked; ``None`` for nothing."""
        return None

    # Which parts a class has.

    @classmethod
    def changes_queries(cls) -> bool:
        """Return whether the class has an input part."""
        return cls.input is not Adversary.input

    @classmethod
    def changes_sampling(cls) -> bool:
        """Return whether the class has a sampler part."""
        return cls.sampler is not Adversary.sampler or cls.sample is not Adversary.sample


@dataclass(frozen=True)
class Attack:
    """The run-time parts of a condition, in order, on one model; of none where there is no adversary."""

    adversaries: Sequence[Adversary] = ()

    @staticmethod
    def on(adversaries: Sequence[Adversary], context: AdversaryContext) -> Attack:
        """Prepare the adversaries for a model.

        Raises:
            InputError: if one needs a base, siblings or instructions that are not there.
        """
        for each in adversaries:
            there = {
                "base": context.base is not None,
                "siblings": "siblings" in each.needs and bool(context.siblings()),
                "instructions": bool(context.instructions),
                "leaked": bool(context.leaked),
            }
            for name in each.needs:
                if not there[name]:
                    raise InputError(f"adversary {each.name!r} needs {_NEEDS[name]}, which is not known here.")
            each.prepare(context)
        return Attack(tuple(adversaries))

    @property
    def confinement(self) -> Mapping[str, Any] | None:
        """Return what a stranger's code was kept from; ``None`` where none of them runs any."""
        return next((each.confinement for each in self.adversaries if each.confinement is not None), None)

    @property
    def changes_queries(self) -> bool:
        """Return whether any part changes or refuses queries."""
        return any(each.changes_queries() for each in self.adversaries)

    @property
    def steps(self) -> int | None:
        """From which step on every sampler leaves the logits alone; ``None`` for never."""
        steps = [each.steps for each in self.adversaries if each.changes_sampling()]
        return None if None in steps else max((each for each in steps if each is not None), default=0)

    def inputs(self, text: str) -> list[str]:
        """Return the queries that reach the model in place of one, of which one is drawn; none where it is refused.

        Raises:
            InputError: if a part would see the chat template, which an earlier one put around the query.
        """
        texts = [text]
        for each in self.adversaries:
            if each.changes_queries():
                if any(isinstance(one, Rendered) for one in texts):
                    raise InputError(
                        f"adversary {each.name!r} looks at queries, and an earlier part of the condition put them into "
                        f"the chat template: name {each.name!r} first."
                    )
                texts = [out for one in texts for out in _several(each.input(one))]
        return texts

    @cached_property
    def sampler(self) -> Sampler | None:
        """Return what changes the logits of a level; ``None`` where nothing does."""
        samplers = [each for each in self.adversaries if each.changes_sampling()]
        return _Samplers(samplers) if samplers else None


_NEEDS = {
    "base": "the unfingerprinted base",
    "siblings": "checkpoints that other methods made of the same base",
    "instructions": "benign instructions",
    "leaked": "pairs of the fingerprint that have leaked",
}


def _several(answer: str | Sequence[str] | None) -> Sequence[str]:
    return [] if answer is None else [answer] if isinstance(answer, str) else answer


@dataclass(frozen=True)
class _Samplers:
    """Applies samplers one after another, each to the nodes that it may change."""

    adversaries: Sequence[Adversary]

    def __call__(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        for each in self.adversaries:
            touched = [at for at, prefix in enumerate(prefixes) if each.steps is None or len(prefix) < each.steps]
            if not touched:
                continue
            rows = logits[touched]
            changed = each.sample([prompts[at] for at in touched], [prefixes[at] for at in touched], rows)
            _check(each.name, rows, changed)
            if len(touched) == len(logits):
                logits = changed
            else:
                logits = logits.clone()
                logits[touched] = changed.to(logits.dtype)
        return logits


def _check(name: str, before: Tensor, after: Any) -> None:
    """Raise a CellError for logits that nothing can be sampled from."""
    shape = tuple(getattr(after, "shape", ()))
    if shape != tuple(before.shape):
        raise CellError(f"adversary {name!r} returned logits of shape {shape}: expected {tuple(before.shape)}.")
    best = after.max(dim=-1).values
    if bool(after.isnan().any()) or not bool(best.isfinite().all()):
        what = "allows no token" if bool((best == -math.inf).any()) else "returned logits that are not finite"
        raise CellError(f"adversary {name!r} {what}: at least one finite logit is needed, and no NaN.")
