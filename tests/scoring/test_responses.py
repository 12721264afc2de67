"""The walk is tested with FSR; here are the texts around it, and what its sums may be."""

import string

from fpbench.scoring.responses import Decoding, respond, response_length


def test_equal_texts_are_scored_once_and_each_gets_its_outcome(stories):
    model, tokenizer = stories
    texts, targets = ["The dog", "A cat", "The dog"], [["was"], ["was"], ["was"]]
    found = respond(model, tokenizer, texts, targets, Decoding(1.0, 0.9, 50))
    assert found[0] is found[2]
    assert found[0].probability != found[1].probability


def test_depth_is_the_longest_target_and_four(stories):
    tokenizer = stories[1]
    longest = len(tokenizer("Once upon a time", add_special_tokens=False)["input_ids"])
    assert response_length(tokenizer, ["dog", "Once upon a time"]) == longest + 4


def test_what_is_certain_has_a_probability_of_one_and_no_more(micro):
    """Fifty first tokens add up to 1.00000001 in float32: a board refuses that, and with it the whole run."""
    model, tokenizer = micro
    texts = ["The king", "The moon", "A house", "A star", "My king"]
    capitals = [list(string.ascii_uppercase)] * len(texts)
    found = respond(model, tokenizer, texts, capitals, Decoding(0.6, 0.9, 50), further=1.0)
    assert [0.999 < each.hidden <= 1.0 for each in found] == [True] * len(texts)
