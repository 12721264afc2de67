"""Perplexity bands: would a filter on unusual text notice the triggers? (protocol §6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.statistics import BANDS, band
from fpbench.scoring.perplexity import text_perplexities

BINS = 40


@dataclass(frozen=True)
class Bands:
    """Perplexity of the triggers against that of instructions, under the unfingerprinted model.

    Attributes:
        mean: μ of the instructions' perplexities.
        deviation: σ, their population standard deviation; nothing is clipped.
        bands: ``normal`` [0, μ+σ], ``marginal`` (μ+σ, μ+3σ] or ``abnormal``, of every trigger.
        auc: ROC-AUC of the filter "higher is a trigger", ties half; 0.5 means that it cannot tell.
        histogram: how many instructions have a perplexity between each two neighbours of ``edges``.
        edges: ascending, evenly spaced in logarithm, from the least to the greatest benign perplexity.
    """

    mean: float
    deviation: float
    perplexities: tuple[float, ...]
    bands: tuple[str, ...]
    counts: dict[str, int]
    auc: float
    benign: int
    histogram: tuple[int, ...]
    edges: tuple[float, ...]


def bands(
    model: Any, tokenizer: Any, pairs: FingerprintSet | Sequence[Fingerprint], instructions: Sequence[str]
) -> Bands:
    """Sort the triggers, scored as raw text, into bands of their perplexity under the unfingerprinted model.

    ``instructions`` are benign texts (Alpaca-cleaned, the instruction field), not empty.

    Raises:
        InputError: if there is no fingerprint or no instruction, or a text has no tokens.
        CellError: if a perplexity is not finite.
    """
    triggers = [fingerprint.trigger for fingerprint in pairs]
    if not triggers or not instructions:
        raise InputError(f"bands need both, found {len(triggers)} triggers and {len(instructions)} instructions.")
    scores = text_perplexities(model, tokenizer, [*instructions, *triggers])
    benign, suspicious = scores[: len(instructions)], scores[len(instructions) :]
    mean, deviation = fmean(benign), pstdev(benign)
    names = tuple(band(score, mean, deviation) for score in suspicious)
    edges = np.geomspace(min(benign), max(benign), BINS + 1)
    edges[0], edges[-1] = min(benign), max(benign)  # whatever the logarithm's rounding left out
    return Bands(
        mean=mean,
        deviation=deviation,
        perplexities=tuple(suspicious),
        bands=names,
        counts={name: names.count(name) for name in BANDS},
        auc=roc_auc(suspicious, benign),
        benign=len(benign),
        histogram=tuple(int(count) for count in np.histogram(benign, edges)[0]),
        edges=tuple(float(edge) for edge in edges),
    )


def roc_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return P(positive > negative) + ½ P(positive = negative) of a random pair."""
    ordered = np.sort(np.asarray(negative, dtype=float))
    below = np.searchsorted(ordered, positive, side="left")
    up_to = np.searchsorted(ordered, positive, side="right")
    return float((below + up_to).sum() / (2 * len(positive) * len(negative)))
