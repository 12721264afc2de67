"""An lm-eval model, ``fpbench``, that reads what requests share once; plain lm-eval needs nothing else of fpbench."""

from collections.abc import Sequence
from math import fsum
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from fpbench.scoring.engine import limited_to, log_likelihoods

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("fpbench")
class PrefixSharingLM(HFLM):
    """lm-eval's ``hf`` model with other log-likelihoods; everything else, generation included, is its own.

    The choices of a question share the question, and questions of one subject their beginning, so each is read once
    (:mod:`fpbench.scoring.engine`). Figures equal those of ``hf`` up to rounding.
    """

    def __init__(self, *arguments: Any, tokens: int | None = None, **keywords: Any) -> None:
        """Take what ``HFLM`` takes, and the padded ``tokens`` of a forward pass, by default the budget in force."""
        super().__init__(*arguments, **keywords)
        self.tokens = tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score each continuation and tell whether it is the greedy one; long contexts lose their beginning."""
        sequences = [[*context, *answer][-(self.max_length + 1) :] for _, context, answer in requests]
        with limited_to(self.tokens):
            scored = log_likelihoods(self.model, sequences, [len(answer) for _, _, answer in requests])
        results = [(fsum(figures), greedy) for figures, greedy in scored]
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results
