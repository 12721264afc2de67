import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from fpbench.errors import CellError, InputError
from fpbench.models.training import LowRank
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.fsft import reach, spectrum
from fpbench.registry import MODIFICATIONS
from tests.methods.architectures import tiny

ROWS = [
    {"instruction": "Name the dog.", "output": "Spot"},
    {"instruction": "Name the cat.", "output": "Tom"},
    {"instruction": "What color is it?", "input": "The sun is big and yellow.", "output": "It is yellow."},
    {"instruction": "Say something else.", "output": "Something else."},
] * 4
SETTINGS = {"rows": 16, "epochs": 3, "batch_size": 4, "rank": 8, "alpha": 16, "learning_rate": 2e-3}
NAMES = ["model.layers.1.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]
RANK = 3
# Strong enough to hold against the loss: A and C shrink with the size of the delta, which is a tenth of the weights'.
STRENGTH = {"A": 1e7, "A_orthogonal": 1e5, "B": 1e5, "C": 1e10}


def dense(variant, delta, update):
    """F as docs/methods.md §3.2, eq. (23) writes it, with every matrix formed."""
    left, _, right = torch.linalg.svd(delta)
    inside = {
        "A": lambda: delta @ delta.T / delta.norm() @ update,
        "A_orthogonal": lambda: left[:, :RANK] @ left[:, :RANK].T @ update,
        "B": lambda: update @ right[:RANK].T,
        "C": lambda: delta * update,
    }
    return inside[variant]().square().sum().item()


def low_rank(shape, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0], rank, generator=draw) @ torch.randn(rank, shape[1], generator=draw)


@pytest.fixture(scope="module")
def injected(stories):
    model = copy.deepcopy(stories[0])
    for seed, name in enumerate(NAMES):
        weight = model.get_parameter(name)
        delta = low_rank(weight.shape, RANK, seed)
        weight.add_(delta * (0.1 * weight.norm() / delta.norm()))
    return model


def tuned(name, model, tokenizer, base, **settings):
    model = copy.deepcopy(model)
    context = ModificationContext(rows={"alpaca": ROWS, "math": ROWS}, base=dict(base.named_parameters()))
    return MODIFICATIONS.get(name)(**(SETTINGS | settings)).apply(model, tokenizer, context)


@pytest.mark.parametrize("variant", STRENGTH)
def test_factors_give_what_the_equations_say(variant):
    draw = torch.Generator().manual_seed(7)
    base, a, b = (torch.randn(*shape, generator=draw) for shape in ((20, 30), (4, 30), (20, 4)))
    delta = low_rank((20, 30), RANK, 5)
    measured = reach(variant, base + delta, base)(LowRank(a, b, 0.5))
    expected = dense(variant, delta, 0.5 * b @ a) / base.square().sum().item()
    assert measured.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_part_of_the_subspace(stories, dtype):
    base = stories[0].model.layers[1].mlp.down_proj.weight.to(dtype)
    delta = low_rank(base.shape, RANK, 1)
    own = (base.float() + delta * (0.1 * base.float().norm() / delta.norm())).to(dtype)
    left, values, right = spectrum(own, base)
    assert (left.shape, values.shape, right.shape) == ((base.shape[0], RANK), (RANK,), (base.shape[1], RANK))


@pytest.fixture(scope="module")
def plain(stories, injected):
    return tuned("finetune_alpaca", injected, stories[1], stories[0])


@pytest.mark.parametrize("variant", STRENGTH)
def test_the_update_keeps_out_of_the_protected_subspace(stories, injected, plain, variant):
    base, tokenizer = stories
    spared = tuned("fsft_alpaca", injected, tokenizer, base, variant=variant, strength=STRENGTH[variant])

    def inside(model):
        found = 0.0
        for name in NAMES:
            own, origin, after = (each.get_parameter(name) for each in (injected, base, model))
            found += dense(variant, own - origin, after - own) ** 0.5
        return found

    assert inside(spared.model) < 0.2 * inside(plain.model)
    # It trains all the same.
    assert spared.proof["relative_change"] > 0.5 * plain.proof["relative_change"]
    assert spared.proof["loss_curve"][-1] < 0.7 * spared.proof["loss_curve"][0]


def test_the_proof_tells_what_was_protected_and_how_the_penalty_went(stories, injected):
    proof = tuned("fsft_math", injected, stories[1], stories[0], variant="B", strength=10.0).proof
    assert proof["protected"] == [name.removesuffix(".weight") for name in NAMES]
    assert (proof["unprotected"], proof["variant"], proof["strength"]) == ([], "B", 10.0)
    assert len(proof["penalty"]) == len(proof["loss_curve"]) == 3
    first, last = proof["penalty"][0][0], proof["penalty"][-1][1]
    assert first == 0 < last < 1  # B = 0 at first


def test_a_negligible_penalty_changes_nothing_of_note(stories, injected, plain):
    weak = tuned("fsft_alpaca", injected, stories[1], stories[0], strength=1e-12)
    assert weak.proof["loss_curve"] == pytest.approx(plain.proof["loss_curve"], rel=1e-4)


def test_what_cannot_be_protected_is_refused(stories, injected):
    base, tokenizer = stories
    vectors = copy.deepcopy(base)
    vectors.model.norm.weight.mul_(1.1)
    vectors.model.embed_tokens.weight.mul_(1.1)
    with pytest.raises(CellError, match="LoRA adapts none of them .model.embed_tokens.weight, model.norm.weight"):
        tuned("fsft_alpaca", vectors, tokenizer, base)
    with pytest.raises(CellError, match="no weight differs"):
        tuned("fsft_alpaca", base, tokenizer, base)
    with pytest.raises(InputError, match="give the base"):
        MODIFICATIONS.get("fsft_math")(**SETTINGS).apply(copy.deepcopy(injected), tokenizer, ModificationContext())


def test_settings_are_checked():
    for settings in ({"variant": "D"}, {"strength": -1}, {"learning_rate": "fast"}):
        with pytest.raises(InputError, match=f"'fsft_math', key '{next(iter(settings))}'"):
            MODIFICATIONS.get("fsft_math")(**(SETTINGS | settings))


def test_a_transposed_weight_is_protected_like_any_other(micro):
    """The penalty of GPT-2's output projection, [in, out] in memory, at its first step is that of its matrix."""
    base = tiny("gpt2", vocabulary=len(micro[1]))
    model = copy.deepcopy(base)
    model.transformer.h[1].mlp.c_proj.weight.add_(low_rank((48, 32), RANK, 0))
    modified = tuned("fsft_alpaca", model, micro[1], base, variant="C")
    assert modified.proof["protected"] == ["transformer.h.1.mlp.c_proj"]
    values = modified.proof["penalty"]
    assert values[0][0] == 0 and 0 < values[0][1] < float("inf")
    assert isinstance(modified.model.transformer.h[1].mlp.c_proj, Conv1D)
