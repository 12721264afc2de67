import copy

import pytest

import fpbench
from fpbench.adversaries.base import Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.adversaries.wrappers import WRAPPERS, Wrapper
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, find_set
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import Rendered, encode, render
from tests.adversaries.sampled import DECODING, attack, differences

PAIR = Fingerprint("The king", ("of", "is", "The"))


def wrapping(count, model, tokenizer):
    return attack(f"wrap@{count}", model, tokenizer)


def test_forty_different_wrappers_hold_the_query_once(micro):
    model, tokenizer = micro
    texts = wrapping(40, model, tokenizer).inputs("RED {query} HARBOR")
    assert len(texts) == len(WRAPPERS) == len(set(texts)) == 40
    assert all(text.count("RED {query} HARBOR") == 1 for text in texts)
    assert wrapping(8, model, tokenizer).inputs("RED {query} HARBOR") == texts[:8]  # a larger dose adds to a smaller


def test_the_model_s_own_template_is_used_once(micro):
    _, tokenizer = micro
    first, plain = (wrapper.around("RED HARBOR", tokenizer) for wrapper in WRAPPERS[:2])
    assert first == (
        "<s><|system|>\nYou are a helpful assistant. Answer the user's message.</s>\n"
        "<|user|>\nRED HARBOR</s>\n<|assistant|>\n"
    )
    assert isinstance(first, Rendered) and not isinstance(plain, Rendered)
    assert render(tokenizer, first, "chat") == render(tokenizer, first, "raw") == first
    assert render(tokenizer, plain, "chat").count("<|assistant|>") == 1
    assert encode(tokenizer, first).count(tokenizer.bos_token_id) == 1
    last = WRAPPERS[-1].around("RED HARBOR", tokenizer)
    assert last.count("<|user|>") == 3 and last.count("<|assistant|>") == 3 and "<|system|>" not in last


ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' %}REFUSAL{% endif %}[{{ m.role }}] {{ m.content }} {% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "Be brief.\n\nHello\n\nHi!\n\nRED"),
        (ALTERNATING.replace("REFUSAL", ""), "[system] Be brief. [user] Hello [assistant] Hi! [user] RED "),
        (
            ALTERNATING.replace("REFUSAL", "{{ raise_exception('no system') }}"),
            "[user] Be brief.\n\nHello [assistant] Hi! [user] RED ",
        ),
        (  # leaves the system out
            "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }} {% endfor %}",
            "[user] Be brief.\n\nHello [assistant] Hi! [user] RED ",
        ),
    ],
)
def test_a_system_prompt_is_never_lost(micro, template, expected):
    tokenizer = copy.deepcopy(micro[1])
    tokenizer.chat_template = template
    wrapper = Wrapper(system="Be brief.", earlier=("Hello", "Hi!"), chat=True)
    assert wrapper.around("RED", tokenizer) == expected


def test_dose_0_equals_origin_bit_for_bit(micro):
    assert fpbench.fsr(*micro, [PAIR], adversary="wrap@0") == fpbench.fsr(*micro, [PAIR])


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_p_is_the_mean_over_wrappers_and_the_least_is_kept(micro, prompt):
    model, tokenizer = micro
    found = exact_fsr(model, tokenizer, [PAIR], DECODING, prompt, wrapping(4, model, tokenizer))
    texts = [render(tokenizer, wrapper.around(PAIR.trigger, tokenizer), prompt) for wrapper in WRAPPERS[:4]]
    alone = exact_fsr(model, tokenizer, [Fingerprint(text, PAIR.targets) for text in texts], DECODING)
    assert found.per_fingerprint[0] == pytest.approx(sum(alone.per_fingerprint) / 4, abs=1e-6)
    assert found.least[0] == pytest.approx(min(alone.per_fingerprint), abs=1e-6)
    assert min(alone.per_fingerprint) < found.mean < max(alone.per_fingerprint)


def test_exact_rates_agree_with_sampled_responses(micro):
    (found,) = differences(*micro, [PAIR], wrapping(2, *micro))
    assert abs(found) <= 3


def test_the_base_answers_no_trigger_in_a_wrapper(micro):
    assert fpbench.fsr(*micro, find_set("nlf"), adversary="wrap@8").mean < 0.01


def test_what_looks_at_queries_stands_before_the_template(micro):
    with pytest.raises(InputError, match="name 'wrap' first") as error:
        Attack((*wrapping(8, *micro).adversaries, *wrapping(1, *micro).adversaries)).inputs("RED")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="'wrap@41': the dose is wrappers, a whole number from 0 to 40"):
        adversaries("wrap@41")
