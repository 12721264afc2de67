"""MMLU from 100 anchor items: item response theory, p-IRT and gp-IRT (tinyBenchmarks, arXiv 2402.14992)."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fpbench.errors import InputError

Floats = NDArray[np.float64]

CLIP = 30.0
TINY = 1e-10
# The reference stops its search at a slope of 1e-5, found by finite differences; this lands within 1e-6 of it in p-IRT.
PRECISION = 1e-6
# The data set whose rows stand in the order of the anchors; rows from elsewhere say which item they are.
PUBLISHED = "hub:tinyBenchmarks/tinyMMLU"


@dataclass(frozen=True)
class Parameters:
    """What was fitted on many models: N items in D dimensions, of which some are anchors.

    Attributes:
        A: discrimination of every item, [D, N].
        B: difficulty of every item, [D, N].
        anchor_items: numbers of the items that are asked.
        anchor_weights: how many items each of them stands for, as shares.
        gp_lambda: weight of the anchors' own score in gp-IRT, 0 … 1.
        subject_sizes: items of each subject; the items stand subject by subject.
    """

    A: NDArray[np.floating]
    B: NDArray[np.floating]
    anchor_items: NDArray[np.integer]
    anchor_weights: Floats
    gp_lambda: float
    subject_sizes: NDArray[np.integer]

    @staticmethod
    def load(path: Path) -> "Parameters":
        """Read an ``.npz`` of plain arrays named as the attributes.

        Raises:
            InputError: if the file is missing, damaged or incomplete, or its arrays do not fit each other.
        """
        names = [field.name for field in fields(Parameters)]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in names}
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"IRT parameters {path}: expected an .npz file with plain arrays {', '.join(names)}, found: {error}; "
                "fetch the file again."
            ) from None
        parameters = Parameters(**found | {"gp_lambda": float(found["gp_lambda"])})
        parameters.check(str(path))
        return parameters

    def check(self, label: str) -> None:
        """Hold the arrays against each other.

        Raises:
            InputError: if their shapes or ranges do not fit.
        """
        items = int(self.subject_sizes.sum())
        anchors = self.anchor_items
        if not (
            self.A.ndim == 2
            and self.A.shape == self.B.shape
            and self.A.shape[1] == items
            and anchors.shape == self.anchor_weights.shape
            and 0 < len(anchors) == len(np.unique(anchors)) < items
            and 0 <= anchors.min() <= anchors.max() < items
        ):
            raise InputError(
                f"IRT parameters {label}: expected A and B [D, {items}] for the {items} items of all subjects and one "
                f"weight for each of the distinct anchors among them, found A {self.A.shape}, B {self.B.shape}, "
                f"{anchors.size} anchors, {self.anchor_weights.size} weights; fetch the file again."
            )

    @property
    def balance(self) -> Floats:
        """b_i = N / (S · size of i's subject), [N]: so weighted, all S subjects count alike."""
        sizes = self.subject_sizes.astype(np.float64)
        shares: Floats = sizes.sum() / (len(sizes) * sizes)
        return np.repeat(shares, self.subject_sizes)


@dataclass(frozen=True)
class Estimate:
    """Accuracy on all N items, estimated from the anchors.

    Attributes:
        theta: the model's ability, [D].
        irt: the anchors' weighted accuracy, 0 … 1.
        pirt: what was seen on the anchors and what θ predicts for all others, every subject alike.
        gpirt: λ · irt + (1 − λ) · pirt.
    """

    theta: tuple[float, ...]
    irt: float
    pirt: float
    gpirt: float


def estimate(correct: Sequence[bool], parameters: Parameters) -> Estimate:
    """Estimate accuracy on all items from the answers to the anchors.

    Args:
        correct: one entry per anchor, in the order of ``parameters.anchor_items``.
        parameters: of the items.

    Raises:
        InputError: if there is not one entry per anchor.
    """
    anchors = parameters.anchor_items
    if len(correct) != len(anchors):
        raise InputError(
            f"tinyMMLU estimate: expected {len(anchors)} answers, one per anchor, found {len(correct)}; "
            "score the whole anchor set."
        )
    y = np.asarray(correct, dtype=np.float64)
    theta = ability(y, parameters.A[:, anchors], parameters.B[:, anchors])
    others = np.ones(parameters.A.shape[1], dtype=bool)
    others[anchors] = False
    balance, predicted = parameters.balance, probability(theta, parameters.A, parameters.B)
    seen = len(anchors) / len(others)
    irt = float(parameters.anchor_weights @ y)
    pirt = float(seen * np.mean(balance[anchors] * y) + (1 - seen) * np.mean((balance * predicted)[others]))
    return Estimate(tuple(theta.tolist()), irt, pirt, parameters.gp_lambda * irt + (1 - parameters.gp_lambda) * pirt)


def probability(theta: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> Floats:
    """p_i = σ(Σ_k clip(A_ki θ_k − B_ki, ±30)), the chance of a right answer to each item, [N]."""
    exponent = np.clip(A * theta[:, None] - B, -CLIP, CLIP).sum(0)
    p: Floats = 1 / (1 + np.exp(-exponent))
    return p


def ability(y: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> Floats:
    """θ [D] that makes the answers likeliest, by BFGS from 0.

    If all answers are right or all are wrong there is no finite optimum, and θ is where the search levels out.
    """
    start = np.zeros(len(A))
    theta: Floats = minimize(surprise, start, (y, A, B), "BFGS", jac=True, options={"gtol": PRECISION}).x
    return theta


def surprise(theta: Floats, y: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> tuple[float, Floats]:
    """−Σ [y log(p + ε) + (1 − y) log(1 − p + ε)] with ε = 1e-10, and its gradient in θ, [D]."""
    p = probability(theta, A, B)
    value = -np.sum(y * np.log(p + TINY) + (1 - y) * np.log(1 - p + TINY))
    by_exponent = p * (1 - p) * ((1 - y) / (1 - p + TINY) - y / (p + TINY))
    inside = np.abs(A * theta[:, None] - B) < CLIP
    gradient: Floats = (A * inside * by_exponent).sum(1)
    return float(value), gradient


def anchor_scores(
    correct: Sequence[bool], rows: Sequence[Mapping[str, Any]], source: str, parameters: Parameters | None
) -> dict[str, Any]:
    """What answers to the anchors say beyond plain accuracy, for a record.

    Args:
        correct: one entry per row that was scored, from the first on.
        rows: all rows of the source; ``anchor_weight`` and ``mmlu_index`` are used where they are given.
        source: the data source.
        parameters: of the items; ``None`` where they were not fetched.

    Returns:
        ``anchor_weighted`` accuracy, ``pirt`` and ``gpirt``, each ``None`` where it cannot be had, and ``scored_by``,
        which says what was reported and why not more.

    Raises:
        InputError: if the rows are other items than the parameters' anchors.
    """
    none = {"anchor_weighted": None, "pirt": None, "gpirt": None}
    if len(correct) != len(rows):
        return none | {"scored_by": f"plain accuracy: {len(correct)} of {len(rows)} rows were scored"}
    y = np.asarray(correct, dtype=np.float64)
    weighted: float | None = None
    if all("anchor_weight" in row for row in rows):
        weights = np.array([row["anchor_weight"] for row in rows], dtype=np.float64)
        weighted = float(weights @ y / weights.sum())
    plain = "plain accuracy" if weighted is None else "plain and anchor-weighted accuracy"
    scores = none | {"anchor_weighted": weighted}
    known = all("mmlu_index" in row for row in rows)
    if not known and not source.startswith(PUBLISHED):
        return scores | {"scored_by": f"{plain}: the rows do not say which MMLU items they are (mmlu_index)"}
    if parameters is None:
        return scores | {"scored_by": f"{plain}: the item parameters are not here (fpbench fetch)"}
    answers = dict(
        zip((row["mmlu_index"] for row in rows) if known else parameters.anchor_items.tolist(), y, strict=True)
    )
    if answers.keys() != set(parameters.anchor_items.tolist()):
        raise InputError(f"tinyMMLU {source}: expected the anchors of the item parameters, found other items.")
    found = estimate([bool(answers[item]) for item in parameters.anchor_items.tolist()], parameters)
    return scores | {
        "anchor_weighted": found.irt,
        "pirt": found.pirt,
        "gpirt": found.gpirt,
        "scored_by": f"{plain}, p-IRT and gp-IRT",
    }
