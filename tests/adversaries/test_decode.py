import pytest
import torch

import fpbench
from fpbench.errors import InputError
from fpbench.metrics.fsr import exact_fsr
from fpbench.scoring.responses import Decoding
from tests.adversaries.sampled import DECODING, PAIRS, attack, differences


def test_the_protocol_s_temperature_equals_origin_bit_for_bit(micro):
    assert fpbench.fsr(*micro, PAIRS, adversary="decode@0.6") == fpbench.fsr(*micro, PAIRS)
    assert fpbench.fsr(*micro, PAIRS, temperature=1.5, adversary="decode@1.5") == fpbench.fsr(
        *micro, PAIRS, temperature=1.5
    )


def test_logits_are_scaled_before_the_temperature_that_follows(micro):
    thief = attack("decode@2", *micro, Decoding(0.5, 1.0, 0)).adversaries[0]
    # At 0.5 the result has the probabilities that (4, −8) has at temperature 2: softmax(2, −4).
    assert torch.equal(thief.sample([[1]], [()], torch.tensor([[4.0, -8.0]])), torch.tensor([[1.0, -2.0]]))


def test_rates_are_those_of_that_temperature(micro):
    found = exact_fsr(*micro, PAIRS, Decoding(0.6, 0.9, 50), attack=attack("decode@1", *micro, Decoding(0.6, 0.9, 50)))
    expected = exact_fsr(*micro, PAIRS, Decoding(1.0, 0.9, 50))
    assert found.per_fingerprint == pytest.approx(expected.per_fingerprint, abs=1e-5)
    plain = exact_fsr(*micro, PAIRS, Decoding(0.6, 0.9, 50))
    assert max(abs(a - b) for a, b in zip(plain.per_fingerprint, found.per_fingerprint, strict=True)) > 0.05


def test_exact_rates_agree_with_sampled_responses(micro):
    (difference,) = differences(*micro, PAIRS, attack("decode@1.5", *micro))
    assert abs(difference) <= 3


@pytest.mark.parametrize("dose", [0.2, 1.0, 1.5, 2.0])
def test_the_base_stays_below_1_percent(micro, fingerprints, dose):
    assert exact_fsr(*micro, fingerprints, DECODING, attack=attack(f"decode@{dose:g}", *micro)).mean < 0.01


def test_temperature_0_is_refused(micro):
    with pytest.raises(InputError, match="'decode@0': the dose is temperature, a number from 0.01, found '0'"):
        attack("decode@0", *micro)
