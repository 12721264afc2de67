"""How a response is sampled, and which tokens can be."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from fpbench.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """How a response is sampled; all three numbers are always given (protocol §2).

    Attributes:
        temperature: above 0.
        top_p: in (0, 1]; 1 keeps everything.
        top_k: at least 0; 0 keeps everything.
    """

    temperature: float
    top_p: float
    top_k: int

    def __post_init__(self) -> None:
        """Refuse numbers outside their range.

        Raises:
            InputError: naming the number.
        """
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, found {self.temperature}: greedy decoding is always shown.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, found {self.top_p}: give 1.0 to keep everything.")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, found {self.top_k}: give 0 to keep everything.")


def sampled_tokens(logits: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that ``generate`` can sample next, and how likely each is.

    As the library does it: temperature, top-k, which keeps ties, and top-p. The last, which sorts, sees only what top-k
    left, in the order of the vocabulary, and so breaks ties as it does there.

    Args:
        logits: [n, V] float32.
        decoding: the three numbers.

    Returns:
        Token ids [n, k], ascending, and their probabilities [n, k], 0 for those that are not sampled.
    """
    unused: Any = None
    scores = logits
    if decoding.temperature != 1:
        scores = TemperatureLogitsWarper(float(decoding.temperature))(unused, scores)
    if decoding.top_k:
        best = scores.topk(min(decoding.top_k, scores.shape[1]))
        last = best.values[:, -1:]
        # What ties with the last of the k stays, too.
        width = int((scores >= last).sum(dim=-1).max())
        tokens = (best if width == best.indices.shape[1] else scores.topk(width)).indices.sort().values
        scores = scores.gather(1, tokens)
        scores = scores.masked_fill(scores < last, -torch.inf)
    else:
        tokens = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(unused, scores)
    return tokens, torch.softmax(scores, dim=-1)
