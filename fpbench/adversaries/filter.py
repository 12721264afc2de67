"""Filtering: queries that a clean model finds strange are refused (arXiv 2309.00614)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES
from fpbench.text import digest

if TYPE_CHECKING:
    from torch import nn

REFUSED = Dose("% of benign instructions refused", default=1.0, list=(0.1, 1, 5, 10), most=100)


@ADVERSARIES.register("filter")
class Filter(Adversary):
    """Refuses queries whose perplexity under a clean model exceeds the (1 − r) quantile of benign instructions.

    The clean model is the unfingerprinted base, by default. The query is scored and never the prompt that it is
    rendered to, whose template would outweigh it. Of n benign instructions the ⌊r n⌋ strangest would be refused.
    """

    pays: ClassVar = {"inference": 1, "parameters": 1}  # the clean model reads the query, and is resident
    dose: ClassVar[Dose | None] = REFUSED
    needs = ("base", "instructions")
    control = "filter_random"

    @classmethod
    def clean_model(cls, context: AdversaryContext) -> nn.Module:
        """Return the model that scores queries; overwrite it for another with the same tokenizer."""
        assert context.base is not None, "it is among the needs"
        return context.base()

    def prepare(self, context: AdversaryContext) -> None:
        """Find the largest perplexity that is let through."""
        super().prepare(context)
        self.largest = math.inf
        if self.amount:
            self.clean = self.clean_model(context)
            scores = sorted(_perplexities(self.clean, context.tokenizer, context.instructions))
            kept = len(scores) - math.floor(len(scores) * self.amount / 100)
            self.largest = scores[kept - 1] if kept else -math.inf

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query, or refuse it."""
        if math.isinf(self.largest):
            return text if self.largest > 0 else None
        (score,) = _perplexities(self.clean, self.context.tokenizer, [text])
        return text if score <= self.largest else None


@ADVERSARIES.register("filter_random")
class FilterRandom(Adversary):
    """Refuses the same share of all queries, whatever they say: the control of ``filter``.

    Which ones, their own digest and the seed decide, so that a query is always or never refused, and a larger dose
    refuses what a smaller one does.
    """

    level: ClassVar[str] = "L0"
    dose: ClassVar[Dose | None] = REFUSED

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query, or refuse it."""
        drawn = int(digest(f"{self.context.seed} {text}")[:13], 16) / 16**13  # in [0, 1)
        return None if drawn < self.amount / 100 else text


# What each clean model said of each text: the same instructions are scored for every dose and every stolen model.
_known: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()


def _perplexities(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    from fpbench.scoring.perplexity import text_perplexities

    known = _known.setdefault(model, {})
    if missing := [text for text in dict.fromkeys(texts) if text not in known]:
        known.update(zip(missing, text_perplexities(model, tokenizer, missing), strict=True))
    return [known[text] for text in texts]
