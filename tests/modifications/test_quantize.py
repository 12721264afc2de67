import copy

import pytest
import torch
from torch import nn

from fpbench.errors import CellError
from fpbench.models.weights import preserved
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.quantize import NF4
from fpbench.registry import MODIFICATIONS
from tests.conftest import PARITY, load_plain, require

DTYPES = [torch.float32, torch.bfloat16]


def quantized(name, model):
    return MODIFICATIONS.get(name)().apply(copy.deepcopy(model), None, ModificationContext())


def inputs(tokenizer):
    return torch.tensor([tokenizer("Once upon a time there was a little girl named Lily and she")["input_ids"]])


@pytest.fixture(scope="module")
def saved(stories, tmp_path_factory):
    folders = {}
    for dtype in DTYPES:
        folders[dtype] = tmp_path_factory.mktemp(str(dtype))
        copy.deepcopy(stories[0]).to(dtype).save_pretrained(folders[dtype])
    return folders


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_equals_loading_with_a_quantisation_config(stories, saved, name, dtype):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    configs = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype),
    }
    loaded = AutoModelForCausalLM.from_pretrained(saved[dtype], dtype=dtype, quantization_config=configs[name]).eval()
    # Loaded, not cast: .to(bfloat16) would round the rotary frequencies, too.
    base = AutoModelForCausalLM.from_pretrained(saved[dtype], dtype=dtype).eval().requires_grad_(False)
    ours = quantized(name, base).model
    types = [(path, type(module)) for path, module in ours.named_modules()]
    assert types == [(path, type(module)) for path, module in loaded.named_modules()]
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    with torch.no_grad():
        ids = inputs(stories[1])
        assert torch.equal(ours(ids).logits, loaded(ids).logits)
        assert not torch.equal(ours(ids).logits, base(ids).logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "bits", "error"),
    [
        # one float32 scale per row of 192 or 512; rounding to 1/127 of the row's maximum
        ("int8", (8.06, 8.17), (0.003, 0.012)),
        # one float32 scale per 64; NormalFloat's error on normal weights is 0.09
        ("nf4", (4.5, 4.5), (0.08, 0.11)),
    ],
)
def test_proof(stories, name, bits, error, dtype):
    proof = quantized(name, copy.deepcopy(stories[0]).to(dtype)).proof
    assert proof["layers"] == 7 * 6
    assert bits[0] <= proof["bits_per_weight"] <= bits[1]
    assert error[0] < proof["relative_change"] < error[1]


def test_every_nf4_weight_is_within_half_a_step_of_its_block(stories):
    weight = stories[0].model.layers[2].mlp.up_proj.weight
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    import bitsandbytes

    _, restored, _ = NF4().quantize(bitsandbytes, layer)
    blocks = weight.detach().reshape(-1, 64)
    gap = (restored.reshape(-1, 64) - blocks).abs() / blocks.abs().amax(1, keepdim=True)
    assert gap.max() < 0.153  # half of NormalFloat's widest gap, −1 to −0.696


def test_the_head_embeddings_and_biases_stay(stories):
    model = copy.deepcopy(stories[0])
    bias = nn.Parameter(torch.full((192,), 0.25), requires_grad=False)
    model.model.layers[0].mlp.down_proj.bias = bias
    head = model.lm_head
    modified = MODIFICATIONS.get("int8")().apply(model, None, ModificationContext()).model
    assert modified is model
    assert modified.lm_head is head
    assert modified.lm_head.weight is modified.model.embed_tokens.weight
    assert modified.model.layers[0].mlp.down_proj.bias is bias
    ids = inputs(stories[1])
    with torch.no_grad():
        with_bias = modified(ids).logits
        bias.zero_()
        assert not torch.equal(with_bias, modified(ids).logits)


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_moving_the_quantised_model_changes_nothing(stories, name):
    model = quantized(name, stories[0]).model
    ids = inputs(stories[1])
    with torch.no_grad():
        before = model(ids).logits
        assert torch.equal(before, model.to("cpu")(ids).logits)


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_nothing_holds_the_replaced_weights_meanwhile_and_they_come_back(stories, name):
    model = copy.deepcopy(stories[0])
    replaced = [each for each in model.model.modules() if type(each) is nn.Linear]
    with preserved(model):
        MODIFICATIONS.get(name)().apply(model, None, ModificationContext())
        assert all(each.weight.untyped_storage().nbytes() == 0 for each in replaced)
        assert model.lm_head.weight.shape == stories[0].lm_head.weight.shape
    assert [each for each in model.model.modules() if type(each) is nn.Linear] == replaced
    after = dict(model.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in stories[0].named_parameters())


def test_a_weight_that_two_layers_share_is_kept(stories):
    model = copy.deepcopy(stories[0])
    first, second = (model.model.layers[number].mlp for number in (0, 1))
    second.up_proj.weight = first.up_proj.weight
    before = first.up_proj.weight.clone()
    weight = first.up_proj.weight
    MODIFICATIONS.get("int8")().apply(model, None, ModificationContext())
    assert torch.equal(weight, before)
    assert torch.equal(first.up_proj.weight.data, second.up_proj.weight.data)


def test_products_are_computed_without_a_word(stories, caplog):
    with torch.no_grad():
        quantized("int8", stories[0]).model(inputs(stories[1]))
    assert not caplog.records


def test_shapes_that_the_cpu_kernel_cannot_take_are_refused_up_front():
    import bitsandbytes

    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX-512 BF16, so every shape is computed")
    model, tokenizer = load_plain(require(PARITY / "model"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CellError, match=r"mlp\.gate_proj of width 172 × 64"):
        MODIFICATIONS.get("nf4")().apply(model, tokenizer, ModificationContext())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert MODIFICATIONS.get("int8")().apply(model, tokenizer, ModificationContext()).proof["layers"] == 35


def test_nothing_to_quantise_and_broken_weights_are_errors(stories):
    model = quantized("int8", stories[0]).model
    with pytest.raises(CellError, match="no plain linear layer"):
        MODIFICATIONS.get("nf4")().apply(model, None, ModificationContext())
    broken = copy.deepcopy(stories[0])
    broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(CellError, match="relative nan"):
        MODIFICATIONS.get("nf4")().apply(broken, None, ModificationContext())
