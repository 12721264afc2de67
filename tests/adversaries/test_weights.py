"""What weights adversaries take away, beside their control: noise of the same norm."""

import copy

from fpbench.metrics.fsr import exact_fsr
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.registry import MODIFICATIONS
from fpbench.scoring.responses import Decoding


def test_merging_with_a_sibling_takes_more_than_its_control(micro, stolen, siblings, fingerprints):
    (base, tokenizer), context = micro, ModificationContext(siblings=lambda: [weights(each) for each in siblings])

    def left(model):
        return exact_fsr(model, tokenizer, fingerprints, Decoding()).mean

    modification = MODIFICATIONS.get("merge_sibling")
    merged = modification(0.5).apply(copy.deepcopy(stolen), None, context)
    noise = MODIFICATIONS.get(modification.control)(merged.proof["relative_change"])
    control = noise.apply(copy.deepcopy(stolen), None, context)
    assert left(stolen) > 0.9 and left(base) < 0.01
    assert left(merged.model) < left(control.model) - 0.1
    assert left(modification(0.5).apply(copy.deepcopy(base), None, context).model) < 0.01
