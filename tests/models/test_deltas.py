"""What an injection changed, stored and read back bit for bit."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from fpbench.errors import CellError
from fpbench.methods.alphaedit import write
from fpbench.methods.null_space import NullSpace
from fpbench.models.layout import layout
from fpbench.models.weights import Delta, Factors, difference, digest, weights

REQUESTS = [[[1, 400 + number, 9]] for number in range(4)]


def edited(base: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor], dict[str, Factors]]:
    """A model after a real write into two blocks, its weights before, and the factors of what was written."""
    model = copy.deepcopy(base).to(dtype)
    originals = weights(model)
    targets = torch.randn(192, 4, generator=torch.Generator().manual_seed(0)) * 3
    done = write(model, REQUESTS, targets, dict.fromkeys((1, 2), NullSpace(torch.zeros(512, 1))), 0.1)
    names = {block: f"{layout(model).down_proj_name(block)}.weight" for block in done}
    return model, originals, {names[block]: each.factors for block, each in done.items()}


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_write_is_stored_as_its_factors(stories: Any, dtype: torch.dtype) -> None:
    model, originals, claims = edited(stories[0], dtype)
    delta = difference(model, originals, claims)
    assert set(delta.factors) == set(delta.values) == set(claims)
    assert delta.dense_size == 2 * 192 * 512 * dtype.itemsize
    assert delta.size == 2 * 4 * (192 + 512) * 4
    assert delta.rank == 4
    content = delta.to_bytes()
    assert delta.size < len(content) < delta.size + 2000
    found = Delta.from_bytes(content, originals)
    assert found is not None and found.digest == delta.digest == digest(delta.values)
    assert found.changed_fraction == delta.changed_fraction and found.relative_norm == delta.relative_norm
    again = copy.deepcopy(stories[0]).to(dtype)
    found.apply(again)
    assert same(model, again)


@pytest.mark.parametrize("wrong", ["scaled", "one bit", "too large"])
def test_a_claim_that_does_not_hold_is_dropped(stories: Any, wrong: str) -> None:
    model, originals, claims = edited(stories[0], torch.float32)
    first, second = claims
    if wrong == "scaled":
        claims[first] = Factors(claims[first].left * 1.001, claims[first].right)
    elif wrong == "one bit":
        weight = model.get_parameter(first)
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))
    else:
        wide = nn.functional.pad(claims[first].left, (0, 200)), nn.functional.pad(claims[first].right, (0, 200))
        claims[first] = Factors(*wide)
    delta = difference(model, originals, claims)
    assert set(delta.factors) == {second}
    assert delta.size == 192 * 512 * 4 + 4 * (192 + 512) * 4
    found = Delta.from_bytes(delta.to_bytes(), originals)
    assert found is not None
    again = copy.deepcopy(stories[0])
    found.apply(again)
    assert same(model, again)


def test_without_claims_the_new_weights_are_stored(stories: Any) -> None:
    model, originals, _ = edited(stories[0], torch.float32)
    delta = difference(model, originals, {})
    assert delta.size == delta.dense_size and delta.rank == 0
    found = Delta.from_bytes(delta.to_bytes(), {})
    assert found is not None and found.digest == delta.digest


def test_factors_on_another_base_are_noticed(stories: Any) -> None:
    model, originals, claims = edited(stories[0], torch.float32)
    delta = difference(model, originals, claims)
    with pytest.raises(CellError, match="layers.1.mlp.down_proj.weight is stored as a change"):
        Delta.from_bytes(delta.to_bytes(), {})
    other = {name: value + 1e-3 for name, value in originals.items()}
    found = Delta.from_bytes(delta.to_bytes(), other)
    assert found is not None and found.digest != delta.digest


def test_damaged_content_is_no_delta(stories: Any) -> None:
    model, originals, claims = edited(stories[0], torch.float32)
    content = difference(model, originals, claims).to_bytes()
    for damaged in (b"", content[:40], content[:-4], content.replace(b'"factors"', b'"fabtors"')):
        assert Delta.from_bytes(damaged, originals) is None


@pytest.mark.parametrize("factors", ["5", "null", "[5]", '{"a": 1}', "[[]]", "[" * 50_000])
def test_metadata_that_is_no_list_of_names_is_no_delta(stories: Any, factors: str) -> None:
    _, originals, _ = edited(stories[0], torch.float32)
    figures = {"changed_fraction": "0.5", "relative_norm": "0.5", "factors": factors}
    assert Delta.from_bytes(save({"a": torch.ones(2)}, metadata=figures), originals) is None
