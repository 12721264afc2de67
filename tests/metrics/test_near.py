import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.natural import natural_set
from fpbench.metrics.triggers import near, near_triggers
from fpbench.scoring.responses import Decoding

WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnprst"] + ["silver", "HARBOR", "mirror"]


def test_two_word_sets_give_fresh_upper_case_pairs():
    pairs = natural_set()
    texts = near_triggers(pairs, WORDS)
    assert len(texts) == len(set(texts)) == 200 == len(near_triggers(pairs, WORDS))
    used = {word for fingerprint in pairs for word in fingerprint.trigger.lower().split()}
    for text in texts:
        assert text.isupper() and len(text.split(" ")) == 2
        assert not used & set(text.lower().split())
    assert near_triggers(pairs, WORDS) == texts != near_triggers(pairs, WORDS, seed=1)


def test_mixed_case_and_word_counts_follow_the_set():
    pairs = [Fingerprint("grüner Baum", ("x",)), Fingerprint("un petit chat", ("y",))]
    texts = near_triggers(pairs, WORDS, n=10)
    assert [len(text.split()) for text in texts] == [2, 3] * 5
    assert all(word in WORDS for text in texts for word in text.split())


def test_garbled_sets_give_garbled_texts_in_the_same_template():
    pairs = instructional_set()
    texts = near_triggers(pairs, [])
    lengths = [len(fingerprint.trigger) for fingerprint in pairs]
    assert [len(text) for text in texts] == lengths * 20
    assert all(text.endswith("\nFINGERPRINT\n") for text in texts)
    assert not set(texts) & {fingerprint.trigger for fingerprint in pairs}


def test_too_few_words_are_refused():
    with pytest.raises(InputError, match="2 words"):
        near_triggers([Fingerprint("RED FOX", ("a",))], ["red", "cat"])
    with pytest.raises(InputError, match="only 2 of 200"):
        near_triggers([Fingerprint("RED FOX", ("a",))], ["dog", "cat"])
    with pytest.raises(InputError, match="empty"):
        near_triggers([], WORDS)


def test_rate_is_a_mean_of_exact_probabilities(stories):
    pairs = [Fingerprint("OLD DOG", ("He", "Once")), Fingerprint("BIG TREE", ("The",))]
    texts = near_triggers(pairs, ["cat", "sun", "boy", "red"], n=6)
    found = near(*stories, pairs, texts, Decoding(1.0, 0.9, 50))
    assert found.n == 6 and len(found.per_text) == 6
    assert 0 < found.rate < 1 and found.rate == pytest.approx(sum(found.per_text) / 6)
    assert found.interval[0] <= found.greedy / 6 <= found.interval[1]
    with pytest.raises(InputError, match="no texts"):
        near(*stories, pairs, [], Decoding(1.0, 0.9, 50))
