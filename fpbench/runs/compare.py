"""Two checkpoints side by side: where one comes from, judged by their weights (white box)."""

from collections.abc import Sequence
from dataclasses import dataclass

from fpbench.models.loading import resolve
from fpbench.models.stored import matrices
from fpbench.ownership.lineage import (
    SignatureEvidence,
    Verdict,
    WeightEvidence,
    decide,
    signature_evidence,
    spreads,
    weight_evidence,
)


@dataclass(frozen=True)
class Comparison:
    """What the weights of two checkpoints say about their lineage.

    Attributes:
        verdict: ``related``, ``unrelated`` or ``undecided``.
        reason: in one sentence.
        weights: correlations of matrices; ``None`` where no shape agrees.
        signature: of the attention projections; ``None`` where they have none in common.
        blocks: of the two models.
        unrelated: what the first model's evidence is with each model known to be unrelated: weights, signature.
        courses: the two signatures, kind → one standard deviation a block.
    """

    verdict: Verdict
    reason: str
    weights: WeightEvidence | None
    signature: SignatureEvidence | None
    blocks: tuple[int, int]
    unrelated: dict[str, tuple[WeightEvidence | None, SignatureEvidence | None]]
    courses: tuple[dict[str, list[float]], dict[str, list[float]]]


def compare(a: str, b: str, *, unrelated: Sequence[str] = (), revision: str | None = None) -> Comparison:
    """Compare two checkpoints by their weights, as ``fpbench compare`` does. No model is run.

    Args:
        a: folder or hub id.
        b: likewise.
        unrelated: models known to be unrelated to the first, which show what chance and kinship of make give.
        revision: branch, tag or commit of hub ids.

    Raises:
        InputError: if a checkpoint is not there, or its weights cannot be read.
    """
    one, other, *rest = (matrices(resolve(each, revision=revision)) for each in (a, b, *unrelated))
    course = spreads(one)
    courses = course, spreads(other)
    known = {
        name: (weight_evidence(one, each), signature_evidence(course, spreads(each)))
        for name, each in zip(unrelated, rest, strict=True)
    }
    weights, signature = weight_evidence(one, other), signature_evidence(*courses)
    verdict, reason = decide(weights, signature, [found.correlation for _, found in known.values() if found])
    plain = tuple({kind: each[kind].tolist() for kind in each} for each in courses)
    return Comparison(verdict, reason, weights, signature, (one.blocks, other.blocks), known, (plain[0], plain[1]))
