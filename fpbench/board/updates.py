"""Updates that are nearly the same: whose method is another's, judged by the sketches of ΔW in their records."""

import base64
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from fpbench.board.groups import Group, RowKey
from fpbench.records.cell import ORIGIN

SAME = 0.999  # cosine above which two updates of one model, set and seed are remarked on


def alike(groups: Iterable[Group]) -> dict[RowKey, dict[str, float]]:
    """Return, by row, the methods whose update of the same model, set and seed is nearly its own, with the cosine.

    Records that bring no sketch, or what is none, are not compared.
    """
    sketches: dict[tuple[str, str, int], dict[str, str]] = {}
    for group in groups:
        model, fingerprints, method = group.key
        for each in group.finished("fsr", ORIGIN):
            if isinstance(found := each.record.proof.get("sketch"), str):
                sketches.setdefault((model, fingerprints, each.cell.seed), {})[method] = found
    remarks: dict[RowKey, dict[str, float]] = {}
    for (model, fingerprints, _), methods in sketches.items():
        for one, other, found in _close(methods):
            for own, whose in ((one, other), (other, one)):
                known = remarks.setdefault((model, fingerprints, own), {})
                known[whose] = max(found, known.get(whose, 0.0))
    return remarks


def _close(methods: Mapping[str, str]) -> Iterable[tuple[str, str, float]]:
    for one, other in combinations(sorted(methods), 2):
        try:
            found = cosine(methods[one], methods[other])
        except ValueError:  # a submitter wrote something else there
            continue
        if found > SAME:
            yield one, other, found


def cosine(one: str, other: str) -> float:
    """Return the cosine of two updates from their sketches (:func:`fpbench.models.sketch.sketch`).

    Raises:
        ValueError: for a text that is no sketch, or sketches of different size.
    """
    a, b = (np.frombuffer(base64.b64decode(each, validate=True), "<f4").astype(float) for each in (one, other))
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if len(a) != len(b) or not 0 < lengths < np.inf:
        raise ValueError("no sketches of two updates")
    return float(a @ b) / lengths
