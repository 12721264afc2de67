"""Voting: the next token is drawn from the mean of the model's distributions under several wrappers of the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.adversaries.wrappers import WRAPPERS
from fpbench.errors import CellError
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor


@ADVERSARIES.register("vote")
class Vote(Adversary):
    """Samples from (1/K) Σ_k p(· | query in wrapper k, response so far): prompt ensembling.

    SecPE does so under encryption. The plain query has no vote. A memorised answer hangs on the very text of the query;
    what most wordings agree on does not.
    """

    level: ClassVar[str] = "L0"
    pays: ClassVar = {"inference": 3}  # at the default dose: as many as it has wrappers
    dose: ClassVar[Dose | None] = Dose("wrappers", default=3, list=(3, 8), most=len(WRAPPERS))

    def prepare(self, context: AdversaryContext) -> None:
        """Keep the model, which is read at the wrapped prompts too, and forget every query."""
        super().prepare(context)
        self.queries: dict[tuple[int, ...], str] = {}  # by the ids of its prompt
        self.wrapped: dict[tuple[int, ...], list[list[int]]] = {}  # the ids of its wrapped prompts, likewise

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query itself, and remember it by its prompt: the sampler is given token ids alone."""
        from fpbench.models.prompts import encode

        self.queries[tuple(encode(self.context.tokenizer, self.context.render(text)))] = text
        return text

    def sample(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities [n, V], which are logits at temperature 1.

        Each wrapper is read for all n nodes together, so that no more than three times the logits are held.

        Raises:
            InputError: if a wrapped prompt and its response exceed the model's context.
            CellError: for a prompt of which the query is not known, as where another part rewrites it afterwards.
        """
        import torch

        from fpbench.scoring.engine import next_logits

        if not self.amount:
            return logits
        nodes = [(self._wrapped(prompt), prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        total = torch.full_like(logits, -math.inf)
        for number in range(int(self.amount)):
            sequences = [[*wrapped[number], *prefix] for wrapped, prefix in nodes]
            found = next_logits(self.context.model, sequences).log_softmax(dim=-1)
            total = torch.logaddexp(total, found.to(logits))
        return total - math.log(self.amount)

    def _wrapped(self, prompt: Sequence[int]) -> list[list[int]]:
        """Return the ids of a prompt's query in every wrapper."""
        from fpbench.models.prompts import encode_all

        key = tuple(prompt)
        if key not in self.queries:
            raise CellError(
                f"adversary {self.name!r} wraps the query that it is given, and the model was given another: name it "
                "after every part that changes queries, and not beside 'wrap'."
            )
        if key not in self.wrapped:
            tokenizer, query = self.context.tokenizer, self.queries[key]
            texts = [wrapper.around(query, tokenizer) for wrapper in WRAPPERS[: int(self.amount)]]
            self.wrapped[key] = encode_all(tokenizer, [self.context.render(text) for text in texts])
        return self.wrapped[key]
