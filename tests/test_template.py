"""The submission template is a passing example."""

import copy
import importlib.util

from fpbench.fingerprints import find_set
from fpbench.metrics.fsr import fsr
from fpbench.registry import METHODS
from fpbench.runs.api import inject
from tests.conftest import ROOT

ADAPTER = ROOT / "submissions" / "_template" / "adapter.py"


def test_the_template_injects_fingerprints(micro):
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    specification = importlib.util.spec_from_file_location("template_adapter", ADAPTER)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        report = inject(model, tokenizer, find_set("nlf"), method="last_block_tuning")
    finally:
        METHODS._classes.pop("last_block_tuning", None)
    assert list(report.delta.values) == ["model.layers.5.mlp.down_proj.weight"]
    assert fsr(model, tokenizer, find_set("nlf"), temperature=0.6, top_p=0.9, top_k=50).primary > 0.9
    assert len(ADAPTER.read_text().splitlines()) <= 60
