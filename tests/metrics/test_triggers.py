import json
import random
from collections import Counter

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint
from fpbench.fingerprints.natural import natural_set
from fpbench.metrics.fsr import fsr
from fpbench.metrics.queries import build_queries, contexts_from_rows, substitute, words_from_rows, words_from_texts
from fpbench.metrics.triggers import triggers

TWO_WORDS = [fingerprint.trigger for fingerprint in natural_set()]
WORDS = ["apple", "door", "window", "cloud", "stone", "harbor", "mirror"]
NUMBERS = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize(("contexts", "queries"), [(303, 38_180), (285, 37_100)])
def test_counts_are_those_of_the_paper(contexts, queries):
    built = build_queries([f"context number {i}" for i in range(contexts)], TWO_WORDS, WORDS)
    assert sum(map(len, built.values())) == queries
    assert list(built) == [f"{case}_{place}" for case in ("upper", "lower")
                           for place in ("substitute", "prefix", "infix", "suffix")]  # fmt: skip
    assert all(Counter(query.trigger_index for query in each).keys() == set(range(10)) for each in built.values())


def test_real_contexts_are_285(shared):
    rows = [json.loads(line) for line in (shared / "data/alpaca/alpaca_subset.jsonl").read_text().splitlines()]
    assert len(contexts_from_rows(rows)) == 285
    words = words_from_rows(rows)
    assert len(words) == len(set(words)) == 5_000 and all(word.isalpha() and word == word.lower() for word in words)
    assert words_from_rows(rows) == words != words_from_rows(rows, seed=1)


def test_empty_and_blank_fields_are_no_contexts():
    rows = [{"instruction": "Go.", "input": " \n", "output": ""}, {"instruction": "a", "input": None, "output": "b "}]
    assert contexts_from_rows(rows) == ["Go.", "a", "b "]
    assert contexts_from_rows(rows, last=1) == ["a", "b "]
    assert sorted(words_from_texts(["It's a b2b Dog, dog!"])) == ["a", "dog", "it", "s"]


def test_insertion_is_set_off_by_single_spaces_and_keeps_the_context():
    context = "one  two\nthree\tfour"
    built = build_queries([context], ["RED FOX", "OLD OAK"], WORDS, substitutions=2)
    assert [query.text for query in built["upper_prefix"]] == [f"RED FOX {context}", f"OLD OAK {context}"]
    assert [query.text for query in built["upper_suffix"]] == [f"{context} RED FOX", f"{context} OLD OAK"]
    assert [query.text for query in built["lower_suffix"]] == [f"{context} red fox", f"{context} old oak"]
    infix = [query.text for query in built["upper_infix"]]
    boundaries = {"one RED FOX  two\nthree\tfour", "one  two RED FOX\nthree\tfour", "one  two\nthree RED FOX\tfour"}
    assert infix[0] in boundaries
    assert infix[1] == infix[0].replace("RED FOX", "OLD OAK")
    drawn = {build_queries([context], ["RED FOX"], WORDS, seed, 1)["upper_infix"][0].text for seed in range(30)}
    assert drawn == boundaries
    assert build_queries(["Hello"], ["RED FOX"], WORDS, 42, 1)["upper_infix"][0].text == "Hello RED FOX"


def test_substitution_replaces_one_word_at_each_position():
    queries = substitute(TWO_WORDS, WORDS, random.Random(42), 40)
    for number, query in enumerate(queries):
        before, after = TWO_WORDS[query.trigger_index].split(), query.text.split()
        assert query.trigger_index == (number // 2 + number // 2 // len(WORDS)) % 10
        assert [a != b for a, b in zip(before, after, strict=True)] == [number % 2 == 0, number % 2 == 1]
        assert query.text.isupper()


def test_substitution_never_spells_a_trigger():
    texts = [query.text for query in substitute(["RED FOX", "RED OAK"], ["fox", "oak", "red"], random.Random(1), 60)]
    assert not {"RED FOX", "RED OAK"} & set(texts)
    with pytest.raises(InputError, match="spelling a trigger"):
        substitute(["RED FOX"], ["red"], random.Random(1), 1)


def test_longer_triggers_cycle_through_their_positions():
    queries = substitute(["A B C D E"], ["x", "y"], random.Random(42), 10)
    assert [query.text.split().index(next(w for w in query.text.split() if w in "XY")) for query in queries] == [
        0, 1, 2, 3, 4, 0, 1, 2, 3, 4
    ]  # fmt: skip


def test_triggers_without_spaces_lose_half():
    trigger = "ABCDEFGHIJKLMNOP\nQR"
    for query in substitute([trigger], ["tree"], random.Random(42), 50):
        start = query.text.index("TREE")
        assert query.text == trigger[:start] + "TREE" + trigger[start + len(trigger) // 2 :]


def test_building_is_deterministic_and_refuses_nothing_to_build():
    contexts = ["some words here", "and there are more"]
    assert build_queries(contexts, TWO_WORDS, WORDS) == build_queries(contexts, TWO_WORDS, WORDS)
    assert build_queries(contexts, TWO_WORDS, WORDS, seed=1) != build_queries(contexts, TWO_WORDS, WORDS)
    for wrong in (([], TWO_WORDS, WORDS), (contexts, [], WORDS), (contexts, TWO_WORDS, [])):
        with pytest.raises(InputError, match="need|no word"):
            build_queries(*wrong)


PAIRS = [Fingerprint("OLD DOG", ("He", "Once")), Fingerprint("BIG TREE", ("The", "Once upon"))]


def test_rates_are_means_of_exact_probabilities(stories):
    model, tokenizer = stories
    contexts = ["The dog was happy.", "Tim and Sue saw a bird in the park. It was red.", "Hello"]
    found = triggers(model, tokenizer, PAIRS, contexts, WORDS, **NUMBERS, substitutions=8)
    assert found == triggers(model, tokenizer, PAIRS, contexts, WORDS, **NUMBERS, substitutions=8)
    assert [each.n for each in found.conditions.values()] == [8, 6, 6, 6] * 2
    assert len(found.queries) == 52 and found.error_bound < 1e-6 and found.cut == 0
    for name, condition in found.conditions.items():
        own = [query for query in found.queries if query.condition == name]
        assert condition.rate == pytest.approx(sum(query.probability for query in own) / len(own))
        assert condition.greedy == sum(query.greedy for query in own)
        assert condition.own <= condition.rate + 1e-9
    assert found.average > 0
    assert found.average == pytest.approx(sum(each.rate for each in found.conditions.values()) / 8)
    assert found.activated == len({query.trigger_index for query in found.queries if query.greedy})
    # A query's probability is what FSR says of the same text with all targets of the set.
    built = build_queries(contexts, ["OLD DOG", "BIG TREE"], WORDS, 42, 8)
    every = tuple(target for pair in PAIRS for target in pair.targets)
    text = [Fingerprint(query.text, every) for query in built["upper_suffix"]]
    expected = fsr(model, tokenizer, text, **NUMBERS).per_fingerprint
    measured = [query.probability for query in found.queries if query.condition == "upper_suffix"]
    assert measured == pytest.approx(expected, abs=1e-4)


def test_long_contexts_are_cut_and_triggers_kept(stories):
    model, tokenizer = stories
    contexts = ["The dog ran to the big tree. " * 70]
    found = triggers(model, tokenizer, PAIRS, contexts, WORDS, **NUMBERS, substitutions=2)
    assert found.cut == 12
    with pytest.raises(InputError, match="context holds 512"):
        triggers(model, tokenizer, [Fingerprint("DOG " * 600, ("He",))], ["a b"], WORDS, **NUMBERS, substitutions=2)
