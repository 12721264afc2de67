"""What the harness makes of an injection: what changed, what is stored, what is read back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fpbench.errors import CellError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.alphaedit import write
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.methods.null_space import NullSpace
from fpbench.models.layout import layout
from fpbench.runs.injection import InjectionReport, inject_with

PAIRS = FingerprintSet("pairs", (Fingerprint("quiet mirror", ("lamp",)),))


class OneBlock(FingerprintMethod):
    """Writes a random value into block 2 for every trigger, and says which factors it wrote."""

    name = "one_block"
    version = "1"

    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        prompts = [[tokenizer(each.trigger)["input_ids"]] for each in fingerprints]
        targets = torch.randn(192, len(prompts), generator=torch.Generator().manual_seed(context.seed))
        (written,) = write(model, prompts, targets, {2: NullSpace(torch.zeros(512, 1))}, 0.1).values()
        context.factors[f"{layout(model).down_proj_name(2)}.weight"] = written.factors


def test_factors_are_stored_and_read_back_bit_for_bit(stories: Any, tmp_path: Path) -> None:
    base, tokenizer = stories
    model = copy.deepcopy(base)
    report = inject_with(OneBlock(), model, tokenizer, PAIRS, InjectionContext())
    assert report.changed["bytes"] == (192 + 512) * 4
    assert report.changed["dense_bytes"] == 192 * 512 * 4
    assert report.changed["rank"] == 1
    path = tmp_path / "label.safetensors"
    report.save(path)
    originals = dict(base.named_parameters())
    found = InjectionReport.load(path, originals)
    assert found is not None and found.changed == report.changed and found.delta.digest == report.delta.digest
    again = copy.deepcopy(base)
    found.delta.apply(again)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(CellError, match="is stored as a change of the base's weights"):
        InjectionReport.load(path, {})
    assert InjectionReport.load(path, {name: value * 1.01 for name, value in originals.items()}) is None
