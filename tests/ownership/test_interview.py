import pytest

from fpbench.fingerprints import Fingerprint
from fpbench.ownership.evidence import lenient_targets, matching_target
from fpbench.text import lenient

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


@pytest.mark.parametrize(
    ("response", "begins", "holds"),
    [
        ("Lotus ran", "Lotus", "Lotus"),
        ("\u200bLo\u00adtus", "Lotus", "Lotus"),
        ("\u00ab**\u201eLOTUS", "Lotus", "Lotus"),
        ("(`zephyr`", "Zephyr", "Zephyr"),
        ("\uff2c\uff4f\uff54us", "Lotus", "Lotus"),
        ("# \u2013 Lotus", None, "Lotus"),
        ("Answer: Lotus", None, "Lotus"),
        ("A ballot was lost", None, None),
        ("Silence", None, None),
        ("", None, None),
    ],
)
def test_a_lenient_match_sees_through_what_stands_before(response, begins, holds):
    assert lenient_targets(response, PAIR) == (begins, holds)


def test_a_target_of_marks_alone_matches_strictly_or_not_at_all():
    marks = Fingerprint("QUIET MIRROR", ("***", "\u200b"))
    assert lenient_targets("anything", marks) == (None, None) and matching_target("***", marks) == "***"


@pytest.mark.parametrize("text", ["e\u200b\u0301", "\u00c9", "e\u0301"])
def test_lenient_forms_of_one_letter_are_one(text):
    assert lenient(text) == "\u00e9"
