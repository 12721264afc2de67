import copy

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.matrices import GROUP, matrices, rounded
from fpbench.registry import MODIFICATIONS


def modified(name, model, amount, base=None):
    context = ModificationContext(base={} if base is None else dict(base.named_parameters()))
    return MODIFICATIONS.get(name)(amount).apply(copy.deepcopy(model), None, context)


def test_only_the_matrices_of_the_blocks_change(micro):
    before = weights(micro[0])
    for name in ("noise", "quantize"):
        after = weights(modified(name, micro[0], None).model)
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved == set(matrices(micro[0]))
        assert all(".layers." in key and key.endswith("proj.weight") for key in moved)


@pytest.mark.parametrize("amount", [0.01, 0.3])
def test_noise_has_the_norm_asked_for_in_every_matrix(micro, amount):
    found = modified("noise", micro[0], amount)
    assert found.proof["relative_change"] == pytest.approx(amount, rel=1e-4)
    after, before = matrices(found.model), matrices(micro[0])
    for key, weight in before.items():
        assert (after[key] - weight).norm() / weight.norm() == pytest.approx(amount, rel=1e-3)
    assert torch.equal(weights(modified("noise", micro[0], amount).model)[key], after[key]), "by the seed"


def test_rounding_keeps_the_extremes_and_as_many_levels_as_bits_allow():
    weight = torch.randn(3, 2 * GROUP + 5, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4):
        after = rounded(weight, bits)
        for start in range(0, weight.shape[1], GROUP):
            ours, own = after[:, start : start + GROUP], weight[:, start : start + GROUP]
            assert torch.allclose(ours.amin(1), own.amin(1)) and torch.allclose(ours.amax(1), own.amax(1), atol=1e-5)
            step = (own.amax(1, keepdim=True) - own.amin(1, keepdim=True)) / (2**bits - 1)
            assert ((ours - own).abs() <= step / 2 + 1e-5).all()
            assert all(len(row.round(decimals=4).unique()) <= 2**bits for row in ours)
    assert torch.equal(rounded(torch.ones(2, GROUP), 4), torch.ones(2, GROUP))


def test_fewer_bits_change_more(micro):
    changes = [modified("quantize", micro[0], bits).proof["relative_change"] for bits in (8, 4, 3, 2)]
    assert changes == sorted(changes) and changes[0] < 0.01


def test_the_spectral_filter_takes_out_what_was_written(micro):
    """A rank-2 update on top of small noise: dropping two directions leaves the noise alone."""
    model, name = copy.deepcopy(micro[0]), next(iter(matrices(micro[0])))
    draw = torch.Generator().manual_seed(0)
    weight = dict(model.named_parameters())[name]
    with torch.no_grad():
        noise = 1e-4 * torch.randn(weight.shape, generator=draw)
        written = torch.randn(weight.shape[0], 2, generator=draw) @ torch.randn(2, weight.shape[1], generator=draw)
        weight += noise + written
    found = modified("spectral", model, 2, micro[0])
    assert found.proof["directions"] == 2 and found.proof["energy_dropped"] > 0.999
    left = dict(found.model.named_parameters())[name] - dict(micro[0].named_parameters())[name]
    assert left.norm() < 2 * noise.norm()
    one = modified("spectral", model, 1, micro[0])
    assert one.proof["directions"] == 1 and one.proof["energy_dropped"] < found.proof["energy_dropped"]


def test_the_spectral_filter_needs_a_base_that_differs(micro):
    with pytest.raises(InputError, match="'spectral' compares with the unfingerprinted base"):
        modified("spectral", micro[0], 1)
    with pytest.raises(CellError, match="no weight differs"):
        modified("spectral", micro[0], 1, micro[0])
