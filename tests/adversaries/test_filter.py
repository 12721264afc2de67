import copy
import json

import pytest

import fpbench
from fpbench.adversaries.filter import REFUSED
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, find_set
from fpbench.fingerprints.instructional import instructional_set
from fpbench.metrics.fsr import exact_fsr
from fpbench.metrics.statistics import clopper_pearson
from fpbench.micro import DATA
from fpbench.models.prompts import render
from fpbench.scoring.perplexity import text_perplexities
from tests.adversaries.sampled import DECODING, attack, sampled_rate

INSTRUCTIONS = [json.loads(line)["instruction"] for line in (DATA / "alpaca.jsonl").read_text().splitlines()[:600]]
PAIRS = [Fingerprint("The king", ("of", "is", "who")), Fingerprint("zq wj kx", ("of", "is", "who"))]


def filtering(condition, model, tokenizer, **known):
    return attack(condition, model, tokenizer, **{"instructions": INSTRUCTIONS, "base": lambda: model} | known)


def test_the_quantile_by_hand(micro):
    texts = INSTRUCTIONS[:8]
    scores = sorted(zip(text_perplexities(*micro, texts), texts, strict=True))
    assert len({score for score, _ in scores}) == 8
    for dose, refused in ((0, 0), (12, 0), (12.5, 1), (25, 2), (30, 2), (99, 7), (100, 8)):
        thief = filtering(f"filter@{dose}", *micro, instructions=texts)
        assert [bool(thief.inputs(text)) for _, text in scores] == [True] * (8 - refused) + [False] * refused, dose


@pytest.mark.parametrize("dose", REFUSED.list)
@pytest.mark.parametrize("name", ["filter", "filter_random"])
def test_it_refuses_its_share_of_benign_instructions(micro, name, dose):
    thief = filtering(f"{name}@{dose}", *micro, instructions=INSTRUCTIONS[::2])
    # What is drawn at random is drawn once a text; the others come as often as among those that set the threshold.
    unseen = INSTRUCTIONS[1::2] if name == "filter" else list(dict.fromkeys(INSTRUCTIONS))
    refused = sum(not thief.inputs(text) for text in unseen)
    low, high = clopper_pearson(refused, len(unseen))
    assert len(unseen) >= 300 and low <= dose / 100 <= high, (refused, len(unseen))


def test_a_larger_dose_refuses_more(micro):
    for name in ("filter", "filter_random"):
        refused = [
            {text for text in INSTRUCTIONS if not filtering(f"{name}@{dose}", *micro).inputs(text)}
            for dose in (0, *REFUSED.list)
        ]
        assert not refused[0] and all(less <= more for less, more in zip(refused, refused[1:], strict=False))
        assert len(refused[-1]) > len(refused[1])


def test_garbled_queries_are_refused_and_their_control_lets_them_pass(micro):
    triggers = [each.trigger for each in instructional_set()]
    refused = {
        name: sum(not filtering(name, *micro).inputs(text) for text in triggers) for name in ("filter", "filter_random")
    }
    assert refused == {"filter": len(triggers), "filter_random": 0}


def test_a_refusal_is_a_miss(micro):
    model, tokenizer = micro
    plain = exact_fsr(model, tokenizer, PAIRS, DECODING)
    found = exact_fsr(model, tokenizer, PAIRS, DECODING, attack=filtering("filter@5", model, tokenizer))
    assert found.per_fingerprint[0] == pytest.approx(plain.per_fingerprint[0], abs=1e-6)
    assert plain.per_fingerprint[1] > 0 == found.per_fingerprint[1] == found.least[1]
    assert found.mean == pytest.approx(plain.per_fingerprint[0] / 2, abs=1e-6)
    assert sampled_rate(model, tokenizer, PAIRS[1], filtering("filter@5", *micro), DECODING, 500) == 0


def test_the_query_is_scored_and_not_its_template(micro):
    model, tokenizer = micro
    chat = filtering("filter@5", model, tokenizer, render=lambda text: render(tokenizer, text, "chat"))
    raw = filtering("filter@5", model, tokenizer)
    assert chat.adversaries[0].largest == raw.adversaries[0].largest
    assert [chat.inputs(each.trigger) for each in PAIRS] == [["The king"], []]
    with pytest.raises(InputError, match="name 'filter' first"):
        filtering("wrap+filter", model, tokenizer).inputs("The king")


def test_the_clean_model_judges(micro):
    model, tokenizer = micro
    stolen = copy.deepcopy(model)
    stolen.get_input_embeddings().weight.zero_()
    thief = filtering("filter@5", stolen, tokenizer, base=lambda: model)
    assert thief.adversaries[0].largest == filtering("filter@5", model, tokenizer).adversaries[0].largest


def test_dose_0_equals_origin_bit_for_bit(micro):
    for condition in ("filter@0", "filter_random@0"):
        found = exact_fsr(*micro, PAIRS, DECODING, attack=filtering(condition, *micro))
        assert found == exact_fsr(*micro, PAIRS, DECODING)


def test_the_base_answers_no_trigger(micro):
    for condition in ("filter", "filter_random"):
        found = exact_fsr(*micro, find_set("nlf"), DECODING, attack=filtering(condition, *micro))
        assert found.mean < 0.01


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("filter", "adversary 'filter' needs the unfingerprinted base"),
        ("filter@101", "'filter@101': the dose is % of benign instructions refused, a number from 0 to 100"),
        ("filter@1.0", "write the dose as filter@1"),
    ],
)
def test_what_cannot_be_is_one_clear_line(micro, condition, message):
    with pytest.raises(InputError, match=message) as error:
        fpbench.fsr(*micro, PAIRS, adversary=condition)
    assert "\n" not in str(error.value)
