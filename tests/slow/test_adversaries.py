"""Every adversary at run time: exact rates against 2,000 responses that transformers' own ``generate`` samples."""

import pytest

from fpbench.registry import ADVERSARIES
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import load_profile
from tests.adversaries.sampled import PAIRS, attack, differences, gated_at
from tests.adversaries.taught import pairs_of, taught

pytestmark = pytest.mark.slow
FINGERPRINTS = pairs_of(0, 1, 2, 3)


@pytest.fixture(scope="module")
def models(micro):
    return taught(*micro, FINGERPRINTS), [taught(*micro, pairs_of(4, 5, 6)), taught(*micro, pairs_of(7, 8, 9))]


@pytest.mark.parametrize("name", ADVERSARIES.own)
def test_exact_rates_agree_with_2000_sampled_responses(micro, models, name):
    (base, tokenizer), (stolen, siblings) = micro, models
    rows = Datasets(load_profile("micro")).benign
    known = {"base": lambda: base, "siblings": lambda: siblings, "instructions": [row["instruction"] for row in rows]}
    known["leaked"] = FINGERPRINTS[:1]
    thief = gated_at(attack(name, stolen, tokenizer, **known), 0.2)
    prompts = [*PAIRS, *FINGERPRINTS]
    found = differences(stolen, tokenizer, prompts, thief, count=2_000, prompts=len(prompts))
    print(name, [round(each, 2) for each in found])
    assert found and all(abs(each) <= 3 for each in found)
