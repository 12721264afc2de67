"""What a claim would have survived: how often chance may match before the same responses are not enough. No torch."""

from collections.abc import Sequence

from fpbench.ownership.claims import FLOOR
from fpbench.ownership.sequential import CARRIED, SequentialTest

STEP = 0.001


def tolerated_chance(matches: Sequence[bool], planned: int, level: float) -> float | None:
    """The largest rate at which chance may match every fingerprint with the same responses leading to a claim.

    Rates are tried upwards from 0.01 in steps of 0.001, until :class:`~fpbench.ownership.sequential.SequentialTest`
    with the same q̄ for every fingerprint makes no claim.

    Args:
        matches: of the fingerprints asked, in the order of asking.
        planned: fingerprints that might have been asked.
        level: α.

    Returns:
        The rate, below 0.5; ``None`` if there is no claim at 0.01 either.
    """
    tolerated = None
    for steps in range(round(FLOOR / STEP), round(CARRIED / STEP)):
        rate = round(steps * STEP, 3)
        if not SequentialTest((rate,) * planned, level).claimed_at(matches):
            break
        tolerated = rate
    return tolerated
