"""FSR, exactly: the probability that a response to a trigger begins with one of its targets (protocol §3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.statistics import clopper_pearson
from fpbench.scoring.responses import Decoding, respond


@dataclass(frozen=True)
class FSR:
    """Fingerprint success rate of one model on one set of n fingerprints.

    Attributes:
        mean: the headline, mean of ``per_fingerprint``.
        interval: Clopper–Pearson 95 % over fingerprints at k = Σ p_i.
        greedy: how many of the n are hit by greedy decoding.
        primary: mean probability that the response begins with the primary target.
        per_fingerprint: p_i.
        per_target: for every fingerprint, target → probability that it is the longest one the response begins with.
        error_bound: largest probability left unexplored for a fingerprint.
        responses: greedy response to every fingerprint, as far as was needed to decide it.
    """

    mean: float
    interval: tuple[float, float]
    greedy: int
    n: int
    primary: float
    per_fingerprint: tuple[float, ...]
    per_target: tuple[dict[str, float], ...]
    error_bound: float
    responses: tuple[str, ...]


def fsr(
    model: Any,
    tokenizer: Any,
    pairs: FingerprintSet | Sequence[Fingerprint],
    *,
    temperature: float = Decoding.temperature,
    top_p: float = Decoding.top_p,
    top_k: int = Decoding.top_k,
    prompt: str = "raw",
) -> FSR:
    """Measure FSR exactly, by walking the tree of continuations: no sampling, no seed.

    Args:
        model: a causal language model in eval mode.
        tokenizer: of the model.
        pairs: n fingerprints, at least one.
        temperature: of the sampling distribution, above 0; all three numbers default to the protocol's (§2).
        top_p: nucleus mass in (0, 1]; 1 keeps everything.
        top_k: number of tokens kept; 0 keeps everything.
        prompt: ``"raw"`` or ``"chat"``.

    Raises:
        InputError: for a decoding number out of range, no fingerprint, no target, or a trigger too long for the model.
        CellError: if the model's logits are not finite.
    """
    return exact_fsr(model, tokenizer, pairs, Decoding(temperature, top_p, top_k), prompt)


def exact_fsr(
    model: Any, tokenizer: Any, pairs: FingerprintSet | Sequence[Fingerprint], decoding: Decoding, prompt: str = "raw"
) -> FSR:
    """Measure FSR; see :func:`fsr`."""
    fingerprints = list(pairs)
    if not fingerprints:
        raise InputError("FSR needs fingerprints: the set is empty.")
    targets = [each.targets for each in fingerprints]
    outcomes = respond(model, tokenizer, [each.trigger for each in fingerprints], targets, decoding, prompt)
    probabilities = tuple(outcome.probability for outcome in outcomes)
    answered = list(zip(outcomes, targets, strict=True))
    return FSR(
        mean=fmean(probabilities),
        interval=clopper_pearson(sum(probabilities), len(probabilities)),
        greedy=sum(outcome.greedy is not None for outcome in outcomes),
        n=len(outcomes),
        primary=fmean(outcome.begins_with(each[:1]) for outcome, each in answered),
        per_fingerprint=probabilities,
        per_target=tuple(
            {target: outcome.per_target.get(target, 0.0) for target in each} for outcome, each in answered
        ),
        error_bound=max(outcome.error_bound for outcome in outcomes),
        responses=tuple(outcome.greedy_text for outcome in outcomes),
    )
