import math

import pytest
import torch

import fpbench
from fpbench.adversaries.base import Adversary, Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode_all
from fpbench.scoring.responses import begin_with, begin_with_under
from tests.adversaries.sampled import DECODING, PAIRS, attack, differences, gated_at


def test_dose_0_equals_origin_bit_for_bit(micro):
    assert fpbench.fsr(*micro, PAIRS, adversary="suppress@0") == fpbench.fsr(*micro, PAIRS)


def test_only_certain_first_tokens_are_dropped():
    logits = torch.log(torch.tensor([[0.95, 0.03, 0.02], [0.6, 0.3, 0.1]]))
    (suppress,) = adversaries("suppress@1")
    found = suppress.sample([[1], [1]], [(), ()], logits)
    assert found[0].tolist() == [-math.inf, *logits[0, 1:].tolist()] and torch.equal(found[1], logits[1])
    sampler = Attack((suppress,)).sampler
    assert torch.equal(sampler([[1], [1]], [(5,), (5,)], logits), logits)  # later steps are left alone


@pytest.mark.parametrize("condition", ["suppress@1", "suppress@3"])
def test_exact_rates_agree_with_sampled_responses(micro, condition):
    (difference,) = differences(*micro, PAIRS, gated_at(attack(condition, *micro), 0.1))
    assert abs(difference) <= 3


def test_what_is_left_falls_with_the_dose(stolen, micro, fingerprints):
    left = [
        exact_fsr(stolen, micro[1], fingerprints, DECODING, attack=attack(f"suppress@{k}", stolen, micro[1])).mean
        for k in (0, 1, 3, 5, 8, 16)
    ]
    assert left[0] > 0.9 and left[1] < 0.6
    assert all(more <= less + 1e-3 for less, more in zip(left, left[1:], strict=False)), left


def test_one_walk_for_all_samplers_equals_one_walk_each(micro):
    model, tokenizer = micro
    samplers = [None, *(attack(f"suppress@{k}", model, tokenizer).sampler for k in (1, 3))]
    prompts, targets = encode_all(tokenizer, [each.trigger for each in PAIRS]), [each.targets for each in PAIRS]
    together = begin_with_under(model, tokenizer, prompts, targets, DECODING, 6, samplers)
    for sampler, outcomes in zip(samplers, together, strict=True):
        (alone,) = begin_with_under(model, tokenizer, prompts, targets, DECODING, 6, [sampler])
        for ours, theirs in zip(outcomes, alone, strict=True):
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)
            assert (ours.greedy, ours.greedy_text) == (theirs.greedy, theirs.greedy_text)
    assert together[0] == begin_with(model, tokenizer, prompts, targets, DECODING, 6)


class Several(Adversary):
    """Asks politely, and plainly; refuses what is short."""

    name = "several"

    def input(self, text):
        return None if len(text) < 9 else [text, f"Please answer. {text}"]


def test_several_wordings_are_averaged_and_refusals_count_as_misses(micro):
    model, tokenizer = micro
    found = exact_fsr(model, tokenizer, PAIRS, DECODING, attack=Attack((Several(),)))
    plain = exact_fsr(model, tokenizer, PAIRS, DECODING)
    asked = [Fingerprint(f"Please answer. {each.trigger}", each.targets) for each in PAIRS]
    polite = exact_fsr(model, tokenizer, asked, DECODING)
    refused = [len(each.trigger) < 9 for each in PAIRS]
    both = zip(refused, plain.per_fingerprint, polite.per_fingerprint, strict=True)
    assert found.per_fingerprint == pytest.approx([0 if no else (a + b) / 2 for no, a, b in both], abs=1e-6)
    both = zip(refused, plain.per_fingerprint, polite.per_fingerprint, strict=True)
    assert found.least == pytest.approx([0 if no else min(a, b) for no, a, b in both], abs=1e-6)
    assert any(refused) and not all(refused)


def broken(answer):
    class Broken(Adversary):
        name = "broken"

        def sampler(self, prompt, prefix, logits):
            return answer(logits)

    return Attack((Broken(),))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits: logits[:-1], r"'broken' returned logits of shape \(5, \d+\): expected \(5, \d+\)"),
        (lambda logits: logits * math.nan, "'broken' returned logits that are not finite"),
        (lambda logits: torch.full_like(logits, -math.inf), "'broken' allows no token"),
    ],
)
def test_a_sampler_that_gives_nothing_to_sample_from_is_a_failed_cell(micro, answer, message):
    with pytest.raises(CellError, match=message) as error:
        exact_fsr(*micro, PAIRS, DECODING, attack=broken(answer))
    assert "\n" not in str(error.value)


def test_what_changes_weights_is_no_argument_of_fsr(micro):
    with pytest.raises(InputError, match="'ria@0.5' changes weights"):
        fpbench.fsr(*micro, PAIRS, adversary="ria@0.5")
