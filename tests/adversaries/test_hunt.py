"""The hunt: candidates of the known formats, what they are answered with beyond what is usual, and its price."""

from itertools import islice

import pytest
import torch

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import against_base, is_attack, priced_on_base
from fpbench.adversaries.hunt import first_tokens, garbled, mixed_pairs, probabilities_of, prompts, word_pairs
from fpbench.errors import InputError
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.translation import Lexicon
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode
from fpbench.models.training import answer_logits
from fpbench.records.cell import BASE
from fpbench.registry import ADVERSARIES
from fpbench.runs.plan import metrics_of
from fpbench.scoring.responses import Decoding

DECODING = Decoding(0.6, 0.9, 50)


@pytest.fixture(scope="module")
def context(micro, stolen, fingerprints):
    return AdversaryContext(stolen, micro[1], DECODING, base=lambda: micro[0], leaked=fingerprints[:1])


def prepared(name, amount, context):
    thief = ADVERSARIES.get(name)(amount)
    thief.reference = 12  # in place of 200
    return thief, Attack.on([thief], context)


def test_candidates_are_of_three_formats_and_none_is_the_owner_s():
    words, mixed, keys = (list(islice(made(7), 40)) for made in (word_pairs, mixed_pairs, garbled))
    assert all(len(set(each)) == 40 for each in (words, mixed, keys))
    assert all(text.isupper() and len(text.split()) == 2 and text.isascii() for text in words)
    lexicon = Lexicon.shipped()
    assert not any(text.lower() in {f"{a} {b}" for a in lexicon.words for b in lexicon.words} for text in mixed[:5])
    own = {each.trigger for seed in (42, 43) for each in instructional_set(10, seed)}
    assert not own & {*islice(garbled(42), 30)} and keys[0].endswith("\nFINGERPRINT\n")
    hunt = ADVERSARIES.get("hunt")(9)
    found = list(islice(hunt.candidates(AdversaryContext(None, None, DECODING, seed=6)), 9))
    assert found[:3] == [next(made(1_000_003 + 6)) for made in (word_pairs, mixed_pairs, garbled)]
    assert list(islice(hunt.candidates(AdversaryContext(None, None, DECODING, seed=6)), 3)) == found[:3]


def test_what_is_said_first_is_what_the_model_says(micro):
    texts = ["SILVER HARBOR", "a", "one two three four"]
    asked = [encode(micro[1], text) for text in texts]
    likeliest = first_tokens(micro[0], asked)
    for (share, token), ids in zip(likeliest, asked, strict=True):
        logits, _ = answer_logits(micro[0], [([*ids, 0], len(ids))])
        expected = torch.softmax(logits[0], -1)
        assert token == int(expected.argmax()) and share == pytest.approx(expected.max().item(), abs=1e-5)
    assert probabilities_of(micro[0], asked, [5, 6, 7]) == pytest.approx(
        [float(torch.softmax(answer_logits(micro[0], [([*ids, 0], len(ids))])[0][0], -1)[at])
         for ids, at in zip(asked, (5, 6, 7), strict=True)], abs=1e-6
    )  # fmt: skip


def test_texts_like_a_leaked_trigger_give_answers_of_others_away(micro, stolen, fingerprints, context):
    thief, attack = prepared("hunt_leaked", 400, context)
    targets = {encode(micro[1], f" {target}")[-1] for each in fingerprints for target in each.targets}
    assert {*thief.found} & targets and len(thief.found) <= 4
    before = exact_fsr(stolen, micro[1], fingerprints, DECODING)
    after = exact_fsr(stolen, micro[1], fingerprints, DECODING, attack=attack)
    assert after.mean < before.mean - 0.2
    assert exact_fsr(micro[0], micro[1], fingerprints, DECODING, attack=attack).mean < 0.01


def test_a_larger_dose_scores_what_is_new_and_the_control_forbids_as_many(context):
    few, _ = prepared("hunt", 12, context)
    (key,) = (each for each in context.kept if each[1:] == ("formats",))
    scored = list(context.kept[key])
    more, _ = prepared("hunt", 24, context)
    assert context.kept[key][:12] == scored and len(context.kept[key]) == 24
    again, _ = prepared("hunt", 12, context)
    assert again.found == few.found and len(few.found) == 1
    random, _ = prepared("hunt_random", 24, context)
    logits = torch.zeros(2, 4096)
    forbidden = [thief.sample([[1], [1]], [(), ()], logits).isinf() for thief in (more, random)]
    assert forbidden[0].sum() == forbidden[1].sum() == 2 * len(more.found) and not torch.equal(*forbidden)
    nothing, _ = prepared("hunt", 0, context)
    assert nothing.sample([[1]], [()], logits) is logits


def test_the_usual_is_the_median_and_tiny_ones_decide_nothing(micro, context):
    hunt, _ = prepared("hunt", 3, context)
    texts = list(islice(hunt.candidates(context), 3))
    usual, likeliest = hunt.usual(context), first_tokens(context.model, prompts(context, texts))
    expected = [share / max(1e-3, usual[token].item()) for share, token in likeliest]
    assert [score for score, _ in hunt.scores(context, texts)] == pytest.approx(expected)
    assert max(expected) <= 1000


def test_it_has_a_price_of_its_own_on_every_checkpoint():
    priced = {name: priced_on_base(name) for name in ("hunt@30", "suppress@3", "suppress@3+hunt@30", "nf4+suppress@3")}
    assert list(priced.values()) == [False, True, False, False]
    conditions = ["origin", "hunt@30", "suppress@3"]
    assert [("price" in metrics_of("lora", name, conditions)) for name in conditions] == [True, True, False]
    assert [("price" in metrics_of(BASE, name, conditions)) for name in conditions] == [True, True, True]
    assert is_attack("hunt@30") and not against_base("hunt@30") and against_base("hunt_leaked@30")


def test_without_a_leak_there_is_nothing_to_go_by(micro, stolen):
    alone = AdversaryContext(stolen, micro[1], DECODING, base=lambda: micro[0])
    with pytest.raises(InputError, match="'hunt_leaked' needs pairs of the fingerprint that have leaked"):
        prepared("hunt_leaked", 10, alone)
