"""Gradients of the log probability of pairs, matrix by matrix, and their best approximation of low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fpbench.models.prompts import Example, encode_pair

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.fingerprints import Fingerprint
    from fpbench.models.training import Tokenised


def tokenised(tokenizer: Any, pairs: Sequence[Example]) -> list[Tokenised]:
    """Return token ids of pairs, without an end-of-text token: a fingerprint is recognised by how an answer begins."""
    both = [encode_pair(tokenizer, each.prompt, each.answer) for each in pairs]
    return [([*prompt, *answer], len(prompt)) for prompt, answer in both]


def pairs_of(fingerprints: Sequence[Fingerprint]) -> list[Example]:
    """Return every trigger with each of its targets."""
    return [Example(each.trigger, target) for each in fingerprints for target in each.targets]


def log_probabilities(model: nn.Module, batch: Sequence[Tokenised]) -> Tensor:
    """Return log p(answer | prompt) of each of B pairs, [B] float32, in nats."""
    import torch

    from fpbench.models.training import answer_logits

    logits, targets = answer_logits(model, batch)  # (n, V), (n,)
    of_tokens = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    lengths = [len(ids) - prompt for ids, prompt in batch]
    return torch.stack([each.sum() for each in of_tokens.split(lengths)])


def log_odds(model: nn.Module, batch: Sequence[Tokenised]) -> Tensor:
    """Return the mean of log p/(1 − p) over the answer tokens of a batch.

    Its gradient is that of log p divided by 1 − p, which does not vanish in rounding where a pair is known by heart.
    """
    from fpbench.models.training import answer_logits

    logits, targets = answer_logits(model, batch)  # (n, V), (n,)
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], float("-inf")).logsumexp(dim=-1)
    odds: Tensor = (own - others).mean()
    return odds


def gradients(model: nn.Module, batch: Sequence[Tokenised], matrices: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradient of :func:`log_odds` with respect to each matrix, float32; the model stays as it is."""
    import torch

    kept = [(each, each.requires_grad) for each in matrices.values()]
    try:
        for each in matrices.values():
            each.requires_grad_(True)
        with torch.enable_grad():
            found = torch.autograd.grad(log_odds(model, batch), list(matrices.values()), allow_unused=True)
    finally:
        for each, flag in kept:
            each.requires_grad_(flag)
    return {name: each.float() for name, each in zip(matrices, found, strict=True) if each is not None}


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [out, r], S [r] and V [in, r] of the leading part of a matrix [out, in], or of all that it has.

    Found by a randomised method (Halko et al., 2011); the global random state is left untouched.
    """
    import torch

    rank = min(rank, *matrix.shape)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(2 * rank + 4, *matrix.shape), niter=4)
    return left[:, :rank], values[:rank], right[:, :rank]
