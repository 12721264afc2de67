"""What a report says, branch by branch, in plain English: the sentences of the terminal and those of both reports."""

from dataclasses import replace
from typing import Any

import pytest

from fpbench.ownership.verification import Evidence, Verification
from tests.ownership.audited import double_negatives

ASKED = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
ZEBRA = "Zebra"
MISS = Evidence(1, "QUIET MIRROR", (ZEBRA,), "Silence", None, None, None, 0.01, -0.7, 7, {})
HIT = replace(MISS, response=ZEBRA, target=ZEBRA, lenient=ZEBRA, anywhere=ZEBRA, log_ratio=3.9)
LENIENT = replace(MISS, response="zebra", lenient=ZEBRA, anywhere=ZEBRA)
FURTHER = replace(MISS, response="A Zebra", anywhere=ZEBRA)


def found(**changes: Any) -> Verification:
    plain = Verification(
        verdict="no claim",
        reason="no fingerprint is left",
        suspect="http://127.0.0.1/v1",
        fingerprints="own",
        size=8,
        dated="built in",
        level=1e-3,
        null_models=(),
        largest_null=None,
        weaker=None,
        uninformative=0,
        bound=6.9,
        threshold=3,
        evidence=(MISS, MISS),
        queries=2,
        budget=None,
        permutation=None,
        needed=None,
        exact=None,
        decoding={"asked": ASKED, "refused": [], "accepted": ASKED | {"seed": 7}},
        revealed=(),
    )
    return replace(plain, **changes)


def served(refused: list[str], accepted: dict[str, Any], **changes: Any) -> Verification:
    return found(decoding={"asked": ASKED, "refused": refused, "accepted": accepted}, **changes)


BRANCHES = {
    "all taken": (served([], {"temperature": 0.6}), "The server accepted temperature 0.6."),
    "some taken": (
        served(["top_k"], {"temperature": 0.6, "seed": 7}),
        "The server turned down top_k and accepted temperature 0.6.",
    ),
    "none taken": (
        served(["temperature", "top_p"], {"seed": 7}),
        "The server turned down temperature, top_p: it sampled with numbers of its own.",
    ),
    "silent": (served([], {}, evidence=(), verdict="undecided"), "The server never answered."),
    "turned down, then silent": (
        served(["top_k"], {}, evidence=(), verdict="undecided"),
        "The server turned down top_k and never answered.",
    ),
    "claim": (found(verdict="claim", evidence=(HIT, HIT)), "CLAIM: "),
    "match": (found(verdict="match", dated=None, evidence=(HIT, HIT)), "MATCH, and no claim: "),
    "undecided": (found(verdict="undecided"), "UNDECIDED, and so no claim: "),
    "as often as chance": (found(), "no number of fingerprints would be enough: chance alone"),
    "needs more": (found(needed=30, evidence=(HIT, MISS)), "would claim with 30 fingerprints asked"),
    "hidden by looks": (found(evidence=(LENIENT, MISS)), "0 of the 2 responses begin with a target; 1 do where"),
    "hidden by words": (found(evidence=(FURTHER, LENIENT)), "and 2 have a target somewhere"),
    "number not known": (found(evidence=(FURTHER, MISS)), "How many fingerprints would be enough is not known"),
    "row, lenient": (found(evidence=(LENIENT,)), "no, but leniently, Zebra"),
    "row, further on": (found(evidence=(FURTHER,)), "no, but further on, Zebra"),
    "built in": (found(), "The set is published with fpbench."),
    "sealed": (found(dated="sealed"), "the commitments of the set were published before"),
    "nothing dates it": (found(dated=None), "Nothing dates the set"),
    "assumed chance": (found(), "assumed to be 0.01 a fingerprint, not measured"),
    "measured chance": (
        found(null_models=("A", "B"), largest_null=0.5, weaker=()),
        "the largest rate of A, B, and at least 0.01",
    ),
    "strength unknown": (found(null_models=("A",), largest_null=0.5), "their perplexity was not compared"),
    "a weak null model": (
        found(null_models=("A", "B"), largest_null=0.5, weaker=(("B", 41.27),)),
        "B is much weaker than the suspect: its perplexity on the same text is 41.3 times as high",
    ),
    "not asked": (found(uninformative=2), "Not asked: 2 fingerprints"),
    "dealt": (found(permutation=0.02), "as many matches with p = 0.02"),
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_branch_says_its_sentence_in_plain_english(branch: str) -> None:
    result, said = BRANCHES[branch]
    assert said in result.summary().replace("\n", " ")
    assert not double_negatives(result.summary())


@pytest.mark.parametrize(
    "said", ["turned down nothing; it did not refuse none of the numbers.", "it is not, or it is no claim, not nothing"]
)
def test_double_negatives_are_found(said: str) -> None:
    assert double_negatives(said)


def test_verify_says_first_what_is_hidden() -> None:
    assert found(evidence=(LENIENT,)).summary().startswith("Matches may be hidden.")
    assert found().summary().startswith("NO CLAIM")


@pytest.mark.parametrize(("own", "other", "named"), [(3.0, 4.0, ()), (3.0, 4.2, ("noise",)), (3.0, 1e9, ("noise",))])
def test_a_null_model_of_more_than_three_times_the_perplexity_is_weaker(own, other, named) -> None:
    from fpbench.ownership.verify import _weaker

    names, tokens = ("base", "noise"), 10
    weaker = _weaker(names, (own * tokens, other * tokens), own * tokens, tokens)
    assert weaker is not None and tuple(name for name, _ in weaker) == named
    assert _weaker(names, (own, None), own, tokens) is None and _weaker(names, (own, other), None, tokens) is None
