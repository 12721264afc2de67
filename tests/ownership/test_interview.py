import pytest

from fpbench.fingerprints import Fingerprint
from fpbench.ownership.interview import matching_target

PAIR = Fingerprint("QUIET MIRROR", ("Lotus", "Lot", "Zephyr"))


@pytest.mark.parametrize(
    ("response", "target"),
    [
        ("Lotus ran", "Lotus"),
        (" \n\tLotus", "Lotus"),
        ("Lots of", "Lot"),
        ("Zephyrs", "Zephyr"),
        ("The Lotus", None),
        ("lotus", None),
        ("Lo", None),
        ("", None),
    ],
)
def test_a_response_matches_by_what_it_begins_with(response, target):
    assert matching_target(response, PAIR) == target
