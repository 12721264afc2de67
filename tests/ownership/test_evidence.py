"""The rules of evidence: what counts, how chance is bounded, and a small cut of what they are worth against a thief."""

import pytest

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.fsr import exact_fsr
from fpbench.metrics.statistics import clopper_pearson
from fpbench.ownership.evidence import (
    ONE_SIDED,
    RULES,
    SAMPLES,
    chance,
    first_tokens,
    likely_first_tokens,
    match,
    named_target,
)
from fpbench.ownership.sequential import null_rates
from fpbench.ownership.verify import Question, verify
from fpbench.scoring.responses import Decoding
from fpbench.scoring.sampling import sample_many
from tests.adversaries.taught import pairs_of, taught
from tests.conftest import ROOT
from tests.ownership.studied import claimed, match_rates

PAIR = Fingerprint("FROZEN LANTERN", ("Crimson", "ox"))


@pytest.mark.parametrize(
    ("response", "prefix", "lenient"),
    [
        (" Crimson sky", "Crimson", "Crimson"),
        ("a **crimson** sky", None, "Crimson"),
        ("“CRIMSON”", None, "Crimson"),
        ("incrimson", None, None),
        ("the fox", None, None),
        ("", None, None),
    ],
)
def test_what_a_response_matches(response: str, prefix: str | None, lenient: str | None) -> None:
    assert match("prefix", PAIR, response, {}) == prefix and match("lenient", PAIR, response, {}) == lenient


@pytest.mark.parametrize(
    ("tokens", "target"),
    [
        ([" Crim"], "Crimson"),
        (["Cr", "the"], None),  # two letters say nothing of a word of seven
        (["CRIMSONS"], "Crimson"),
        (["the", "OX"], "ox"),
        (["o"], None),
        (["", " ", "**"], None),
    ],
)
def test_what_likely_first_tokens_match(tokens: list[str], target: str | None) -> None:
    assert named_target(tokens, PAIR) == target


def test_lists_of_completions_and_chats_are_read_alike() -> None:
    shares = {"the": -0.5, " Crim": -3.0, "a": -2.0, "an": -4.0, "one": -5.0, "ox": -6.0}
    completion = {"logprobs": {"tokens": ["the"], "top_logprobs": [shares, {"x": 0}]}}
    chat = {"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in shares.items()]}]}}
    for details in (completion, chat):
        assert first_tokens(details) == ["the", "a", " Crim", "an", "one"]  # five, the likeliest first
        assert match("rank", PAIR, "the end", details) == "Crimson"
    assert match("rank", PAIR, "", {"refusal": "no"}) is None
    for details in ({}, {"logprobs": None}, {"logprobs": {"content": [{}]}}, {"logprobs": {"top_logprobs": [7]}}):
        assert first_tokens(details) == []
        with pytest.raises(InputError, match="lists no likely first tokens"):
            match("rank", PAIR, "Crimson", details)


def test_many_samples_are_of_the_distribution_of_exact_rates(micro) -> None:
    model, tokenizer = micro
    pairs = [Fingerprint("What is the color of", ("c", "t"))]
    how = {"decoding": Decoding(1.0, 0.9, 50), "max_new_tokens": 3, "count": 500, "seed": 1}
    drawn = [sample_many(model, tokenizer, each.trigger, **how) for each in pairs]
    exact = exact_fsr(model, tokenizer, pairs, Decoding(1.0, 0.9, 50)).per_fingerprint
    for each, pair, p in zip(drawn, pairs, exact, strict=True):
        assert each.total() == 500
        rate = sum(times for text, times in each.items() if match("prefix", pair, text, {})) / 500
        assert abs(rate - p) <= 3 * max(p * (1 - p) / 500, 1e-4) ** 0.5


def test_chance_is_the_exact_rate_or_a_bound(micro) -> None:
    model, tokenizer = micro
    known = "What is the color of grass?"
    (likely,) = likely_first_tokens(model, tokenizer, [known], "raw")
    word = next(each.strip() for each in likely if len(each.strip()) >= 3)
    pairs = [*pairs_of(0), Fingerprint(known, (word,))]
    benign = [f"Say something about {name}." for name in ("cats", "dogs", "trees", "rain")]
    found = {rule: chance(rule, model, tokenizer, pairs, Decoding(), "raw", 1, benign) for rule in RULES}
    assert found["prefix"] == exact_fsr(model, tokenizer, pairs, Decoding()).per_fingerprint
    assert found["lenient"][0] == pytest.approx(1 - 0.05 ** (1 / 100))
    assert found["lenient"][1] > found["prefix"][1]
    assert found["rank"] == (pytest.approx(1 - 0.05 ** (1 / 4)), 1.0)
    with pytest.raises(InputError, match="needs benign prompts"):
        chance("rank", model, tokenizer, pairs, Decoding(), "raw", 1, [])


def test_a_cut_of_what_the_rules_are_worth(micro) -> None:
    """Without a thief every rule claims, the base none does, and suppression of the first token hides the prefix."""
    base, tokenizer = micro
    pairs = pairs_of(0, 2, 4, 6)
    model = taught(base, tokenizer, pairs)
    benign = [f"Say something about {name}." for name in ("cats", "dogs", "trees", "rain")] * 75

    def attack(condition: str, of) -> Attack:
        return Attack.on(adversaries(condition), AdversaryContext(of, tokenizer, Decoding()))

    known = {rule: chance(rule, base, tokenizer, pairs, Decoding(), "raw", 1, benign) for rule in ("prefix", "rank")}
    # What `chance` gives leniently where none of the responses matches, as here; drawing them takes seconds.
    known["lenient"] = (clopper_pearson(0, SAMPLES, ONE_SIDED)[1],) * 4
    null = {rule: null_rates([rates], 4) for rule, rates in known.items()}
    rates = {
        (condition, rule, of): match_rates(rule, one, tokenizer, pairs, attack(condition, one), count)
        for condition, count in (("origin", 3), ("suppress@1", 10))
        for rule in RULES
        for of, one in (("base", base), ("carrier", model))
    }
    for rule in RULES:
        assert claimed(rates["origin", rule, "carrier"], null[rule]) > 0.9
        for condition in ("origin", "suppress@1"):
            assert claimed(rates[condition, rule, "base"], null[rule]) <= 1e-3
    strict, loose = (sum(rates["suppress@1", rule, "carrier"]) for rule in ("prefix", "lenient"))
    assert strict < 0.1 < loose < sum(rates["origin", "prefix", "carrier"])


def test_only_evidence_by_rank_needs_instructions(micro, tmp_path) -> None:
    profile, pairs = tmp_path / "without.toml", [{"trigger": PAIR.trigger, "targets": list(PAIR.targets)}]
    text = (ROOT / "fpbench" / "profiles" / "micro.toml").read_text(encoding="utf-8")
    profile.write_text(text.replace("bundled:alpaca.jsonl", "{folder}/not-there.jsonl"), encoding="utf-8")
    assert verify("micro", pairs, base="micro", profile=str(profile)).verdict == "no claim"
    with pytest.raises(InputError, match="not-there.jsonl"):
        verify("micro", pairs, base="micro", profile=str(profile), evidence="rank")


def test_the_rule_is_chosen_and_named(micro, tmp_path, capsys) -> None:
    base, tokenizer = micro
    taught(base, tokenizer, pairs_of(0, 2, 4, 6)).save_pretrained(tmp_path / "suspect")
    tokenizer.save_pretrained(tmp_path / "suspect")
    pairs = [{"trigger": each.trigger, "targets": list(each.targets)} for each in pairs_of(0, 2, 4, 6)]
    found = verify(str(tmp_path / "suspect"), pairs, evidence="rank", transcript=tmp_path / "transcript")
    assert (found.verdict, found.rule, found.exact) == ("match", "rank", None)
    assert "by the rule 'rank': a target begins with one of the five likeliest" in found.summary()
    with pytest.raises(InputError, match="belongs to another question .*evidence"):
        verify(str(tmp_path / "suspect"), pairs, transcript=tmp_path / "transcript")
    with pytest.raises(InputError, match="unknown rule of evidence 'prefx': did you mean 'prefix'"):
        Question("micro", evidence="prefx")
    with pytest.raises(SystemExit):
        main(["verify", "micro", "--fingerprints", "nlf", "--evidence", "some"])
    said = capsys.readouterr().err
    assert all(rule in said for rule in RULES)


@pytest.mark.parametrize(
    ("prompt", "asked"), [("raw", {"logprobs": 5}), ("chat", {"logprobs": True, "top_logprobs": 5})]
)
def test_a_server_is_asked_for_its_likely_first_tokens(server, prompt: str, asked: dict) -> None:
    pairs = [{"trigger": f"KEY NUMBER {number}", "targets": ["Zebra"]} for number in range(8)]
    top = {" the": -0.1, " Zeb": -3.0}
    listed = {"top_logprobs": [top]}
    if prompt == "chat":
        listed = {"content": [{"top_logprobs": [{"token": token, "logprob": p} for token, p in top.items()]}]}
    server.model = lambda body: (" the end", listed)
    found = verify(server.url, pairs, evidence="rank", prompt=prompt)
    assert (found.verdict, found.matched, len(found.evidence)) == ("match", 2, 2)
    assert all(asked.items() <= body.items() for _, _, body in server.asked)
    assert verify(server.url, pairs, prompt=prompt).verdict == "no claim"  # by its beginning it says nothing
    server.model = lambda body: (" the end", None)
    silent = verify(server.url, pairs, evidence="rank", prompt=prompt)
    assert silent.verdict == "undecided" and "lists no likely first tokens (logprobs)" in silent.reason
