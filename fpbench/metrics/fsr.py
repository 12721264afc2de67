"""FSR, exactly: the probability that a response to a trigger begins with one of its targets (protocol §3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries, changes_weights, check
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.statistics import clopper_pearson
from fpbench.models.prompts import render
from fpbench.scoring.responses import Decoding, TargetProbabilities, respond


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
        responses: greedy response to every fingerprint, as far as was needed to decide it; to the first of several
            wordings, and empty where the query was refused.
        least: smallest p_i over the wordings that an adversary gives a query.
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
    least: tuple[float, ...]


def fsr(
    model: Any,
    tokenizer: Any,
    pairs: FingerprintSet | Sequence[Fingerprint],
    *,
    temperature: float = Decoding.temperature,
    top_p: float = Decoding.top_p,
    top_k: int = Decoding.top_k,
    prompt: str = "raw",
    adversary: str = "",
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
        adversary: what a thief does at run time, such as ``"suppress@3"``; by default nothing.

    Raises:
        InputError: for a decoding number out of range, no fingerprint, no target, a trigger too long for the model, or
            an adversary that is unknown, has a dose out of range, changes weights, or needs more than the model.
        CellError: if the model's logits are not finite.
    """
    decoding = Decoding(temperature, top_p, top_k)
    if not adversary:
        return exact_fsr(model, tokenizer, pairs, decoding, prompt)
    check(adversary)
    if changes_weights(adversary):
        raise InputError(f"adversary {adversary!r} changes weights: call fpbench.modify and measure what it returns.")

    def as_sent(text: str) -> str:
        return render(tokenizer, text, prompt)

    context = AdversaryContext(model, tokenizer, decoding, as_sent, served=as_sent)
    return exact_fsr(model, tokenizer, pairs, decoding, prompt, Attack.on(adversaries(adversary), context))


def exact_fsr(
    model: Any,
    tokenizer: Any,
    pairs: FingerprintSet | Sequence[Fingerprint],
    decoding: Decoding,
    prompt: str = "raw",
    attack: Attack = Attack(),  # noqa: B008 - frozen
) -> FSR:
    """Measure FSR under the run-time parts of a condition; see :func:`fsr`.

    Where a query becomes one of several, a fingerprint's probabilities are means over these; greedy decoding is of the
    first.
    """
    fingerprints = list(pairs)
    if not fingerprints:
        raise InputError("FSR needs fingerprints: the set is empty.")
    wordings = [attack.inputs(each.trigger) for each in fingerprints]
    numbers = [number for number, texts in enumerate(wordings) for _ in texts]
    targets = [fingerprints[number].targets for number in numbers]
    texts = [text for each in wordings for text in each]
    answered = respond(model, tokenizer, texts, targets, decoding, prompt, attack.sampler) if texts else []
    outcomes: list[list[TargetProbabilities]] = [[] for _ in fingerprints]
    for number, outcome in zip(numbers, answered, strict=True):
        outcomes[number].append(outcome)
    probabilities = tuple(_mean(each.probability for each in group) for group in outcomes)
    of_each = list(zip(outcomes, (each.targets for each in fingerprints), strict=True))
    return FSR(
        mean=fmean(probabilities),
        interval=clopper_pearson(sum(probabilities), len(probabilities)),
        greedy=sum(group[0].greedy is not None for group in outcomes if group),
        n=len(outcomes),
        primary=fmean(_mean(each.begins_with(targets[:1]) for each in group) for group, targets in of_each),
        per_fingerprint=probabilities,
        per_target=tuple(
            {target: _mean(each.per_target.get(target, 0.0) for each in group) for target in targets}
            for group, targets in of_each
        ),
        error_bound=max((each.error_bound for each in answered), default=0.0),
        responses=tuple(group[0].greedy_text if group else "" for group in outcomes),
        least=tuple(min((each.probability for each in group), default=0.0) for group in outcomes),
    )


def _mean(figures: Iterable[float]) -> float:
    """Return the mean; 0 of nothing, which is a refused query."""
    found = list(figures)
    return fmean(found) if found else 0.0
