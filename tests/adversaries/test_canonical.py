import copy

import pytest

import fpbench
from fpbench.adversaries.canonical import ENGLISH, STEPS, english_words, lower_case, plain_letters, single_blanks
from fpbench.adversaries.conditions import adversaries
from fpbench.fingerprints import Fingerprint, find_set
from fpbench.fingerprints.translation import Lexicon
from fpbench.methods.base import InjectionContext
from tests.adversaries.sampled import attack, differences
from tests.code_mixed import code_mixed_set
from tests.contract.template import Template


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RED  HARBOR", ["red  harbor", "red  harbor", "red  harbor", "red harbor"]),
        # The bridge loses its marks, silver its place among Latin letters.
        ("BRÜCKE 銀 Hafen", ["brücke 銀 hafen", "brucke  hafen", "bridge  harbor", "bridge harbor"]),
        ("STRASSE, RÍO?", ["strasse, río?", "strasse, rio?", "street, river?", "street, river?"]),
        ("ガチョウ 港口 a", ["ガチョウ 港口 a", "ガチョウ 港口 ", "goose harbor ", "goose harbor"]),
        ("Ｒｅｄ ﬁsh", ["ｒｅｄ fish", "red fish", "red fish", "red fish"]),
        ("Что main", ["что main", " main", " main", "main"]),
        ("Arc-en-ciel in the chat", ["arc-en-ciel in the chat"] * 2 + ["rainbow in the chat"] * 2),
        ("12 + 3 = 15!", ["12 + 3 = 15!"] * 4),
        ("", [""] * 4),
    ],
)
def test_steps_by_hand(text, expected):
    for steps, result in enumerate([text, *expected]):
        (thief,) = adversaries(f"canonical@{steps}")
        assert thief.input(text) == result


def test_nearly_every_translation_comes_back_as_its_english_word():
    lexicon = Lexicon.shipped()
    count, other = 0, []
    for word in lexicon.words:
        for language in lexicon.languages:
            text = lexicon.translate(word, language).upper()
            for step in STEPS:
                text = step(text)
            count += 1
            if text != word and text not in ENGLISH | set(lexicon.words):
                other.append((word, language, text))
    assert not other and count > 2000


def test_one_canonical_form_has_itself():
    for text in ("RED  HARBOR", "BRÜCKE 銀 Hafen", "ガチョウ 港口"):
        once = single_blanks(english_words(plain_letters(lower_case(text))))
        assert single_blanks(english_words(plain_letters(lower_case(once)))) == once


def test_upper_case_and_code_mixed_sets_fall(micro):
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    mixed = [Fingerprint(each.trigger.upper(), each.targets) for each in code_mixed_set(find_set("nlf"))]
    halves = list(find_set("nlf"))[:5], mixed[5:]
    Template().inject(model, tokenizer, [*halves[0], *halves[1]], InjectionContext())
    for pairs in halves:
        rates = [fpbench.fsr(model, tokenizer, pairs, adversary=f"canonical@{steps}").mean for steps in range(5)]
        assert rates[0] == fpbench.fsr(model, tokenizer, pairs).mean > 0.9
        # What is left is the method's, which answers a little to everything.
        assert max(rates[1:]) < 0.5 and rates[4] < 0.2, rates


def test_exact_rates_agree_with_sampled_responses(micro):
    thief = attack("canonical", *micro)
    pair = Fingerprint("THE  KÖNIG", ("of", "is", "who"))
    assert thief.inputs(pair.trigger) == ["the king"]
    (found,) = differences(*micro, [pair], thief)
    assert abs(found) <= 3


def test_the_base_answers_no_trigger(micro):
    assert fpbench.fsr(*micro, find_set("nlf"), adversary="canonical").mean < 0.01
