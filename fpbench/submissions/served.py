"""Serve a submitted adversary in its child process: with tokenizer, base and instructions, without the stolen model.

Torch and transformers are imported once the adversary is to be served: what it declares is known before.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.errors import CellError
from fpbench.models.loading import Loading, load_tokenizer
from fpbench.models.prompts import Rendered, render

if TYPE_CHECKING:
    from torch import nn


class Withheld:
    """Stands where a model would: whoever asks it for anything is told that it is not there."""

    def __getattr__(self, name: str) -> Any:
        """Raise a CellError."""
        raise CellError(
            "a submitted adversary gets logits, and no stolen model to look into: one that needs it takes an installed "
            "package (docs/submissions.md)."
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Raise a CellError."""
        return self.logits


WITHHELD: Any = Withheld()


def without_model(adversary: type[Adversary]) -> type[Adversary]:
    """Return the same adversary, to which no model is shown but the base that it needs."""

    class WithoutModel(adversary):  # type: ignore[misc, valid-type]
        def prepare(self, context: AdversaryContext) -> None:
            super().prepare(replace(context, model=WITHHELD))

    return WithoutModel


def declared(adversary: type[Adversary]) -> dict[str, Any]:
    """Return what a class declares, as :class:`~fpbench.submissions.replies.Declaration`."""
    parts = {
        "input": adversary.changes_queries(),
        "sampler": adversary.changes_sampling(),
        "weights": adversary.weights is not Adversary.weights,
    }
    return {
        "version": str(adversary.version),
        "level": str(adversary.level),
        "parts": [name for name, there in parts.items() if there],
        "needs": list(adversary.needs),
        "pays": dict(adversary.pays),
        "dose": None if adversary.dose is None else asdict(adversary.dose),
    }


class Served:
    """What adversaries of one base are given."""

    def __init__(self, base: Path, loading: dict[str, Any], prompt: str) -> None:
        """Load the tokenizer of a checkpoint, and its weights where they are asked for."""
        self.base, self.loading, self.prompt = base, Loading(**loading), prompt
        self.tokenizer = load_tokenizer(base, trust_remote_code=self.loading.trust_remote_code)

    @cached_property
    def model(self) -> "nn.Module":
        """The unfingerprinted base."""
        return self.loading.load(self.base)[0]

    def context(self, decoding: dict[str, Any], seed: int, instructions: Sequence[str]) -> AdversaryContext:
        """Return what an adversary may know and have."""
        from fpbench.scoring.responses import Decoding

        def sent(text: str) -> str:
            return render(self.tokenizer, text, self.prompt)

        return AdversaryContext(
            WITHHELD,
            self.tokenizer,
            Decoding(**decoding),
            render=sent,
            served=sent,
            seed=seed,
            instructions=instructions,
            base=lambda: self.model,
        )


def queries(found: str | Sequence[str] | None) -> dict[str, Any]:
    """Return what an adversary makes of a query, as :class:`~fpbench.submissions.replies.Query`."""
    texts = [found] if isinstance(found, str) else found
    if texts is None:
        return {"texts": None}
    return {"texts": list(texts), "rendered": [isinstance(each, Rendered) for each in texts]}
