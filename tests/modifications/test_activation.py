import copy
import math

import pytest
import torch
import transformers
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from fpbench.adversaries.conditions import check
from fpbench.errors import CellError, InputError
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.weights import preserved, state_digest
from fpbench.modifications.activation import attention, piecewise, quadratics, reciprocal_root, softmax
from fpbench.modifications.base import ModificationContext
from fpbench.registry import MODIFICATIONS
from fpbench.scoring.engine import next_logits, shares_prefixes
from tests.adversaries.sampled import DECODING, PAIRS, differences
from tests.adversaries.taught import pairs_of

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL, **HEADS),
    "qwen3": transformers.Qwen3Config(**SMALL, **HEADS, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SMALL, **HEADS, head_dim=8, query_pre_attn_scalar=8),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
    "bloom": transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
}
IDS = torch.arange(1, 13)[None]


def approximated(model, bits):
    return MODIFICATIONS.get("activation")(bits).apply(model, None, ModificationContext())


def small(name):
    torch.manual_seed(0)
    CONFIGS[name].initializer_range = 0.3  # so that attention prefers something
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval().requires_grad_(False)


def logits(model, ids=IDS, **given):
    with torch.no_grad():
        return model(input_ids=ids, **given).logits


@pytest.mark.parametrize(("function", "error"), [(silu, 0.003), (gelu, 0.009)])
def test_pieces_meet_the_function_at_both_ends_and_in_the_middle(function, error):
    pieces = quadratics(function)
    ends = torch.arange(-8, 8, 0.5)
    assert torch.allclose(piecewise(ends, pieces), function(ends), atol=1e-6)
    # From 0, −0.5 and 0 at −1, −½ and 0 follow c₀ = 0, c₁ = −2, c₂ = 2: at t = ¼ that is −3/8.
    assert piecewise(torch.tensor([-0.75]), quadratics(lambda x: 2 * x * (x + 1))).item() == pytest.approx(-0.375)
    x = torch.linspace(-12, 12, 10_001)
    far = piecewise(x, pieces)
    assert (far - function(x)).abs().max() < error
    assert torch.equal(far[x >= 8], x[x >= 8]) and not far[x < -8].any()


def test_a_softmax_keeps_numerators_to_so_many_bits():
    scores = torch.tensor([0, -math.log(2), -math.log(4), -math.log(30)]) + 7
    assert softmax(scores, 4).tolist() == pytest.approx([16 / 29, 8 / 29, 4 / 29, 1 / 29])  # 16/30 is rounded to 1
    assert softmax(scores, 3).tolist() == pytest.approx([8 / 14, 4 / 14, 2 / 14, 0])  # 8/30 to 0
    assert torch.allclose(softmax(scores, 16), scores.softmax(dim=-1), atol=1e-4)


def test_the_reciprocal_root_is_one_newton_step_away():
    v = torch.logspace(-12, 6, 10_001)
    assert ((reciprocal_root(v) * v.sqrt() - 1).abs().max()) < 0.0018
    assert ((reciprocal_root(v) * v.sqrt() - 1).abs().max()) > 0.001


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("queries", [5, 1])
def test_attention_is_the_library_s_but_for_its_softmax(kind, queries):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    seen = torch.ones(queries, 5, dtype=torch.bool).tril(5 - queries).expand(2, 1, -1, -1)
    mask = {"none": None, "bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)}[kind]
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    found = attention(torch.nn.Module(), query, key, value, mask, bits=16)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(attention(torch.nn.Module(), query, key, value, mask, bits=2), expected, atol=1e-3)


def test_attention_with_what_it_does_not_compute_is_refused():
    query = torch.randn(1, 1, 2, 4)
    with pytest.raises(CellError, match="attention with s_aux"):
        attention(torch.nn.Module(), query, query, query, None, bits=8, s_aux=torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "counts"), [("llama", (2, 2, 5)), ("qwen3", (2, 2, 9)), ("gemma2", (2, 2, 9)), ("gpt2", (2, 2, 0))]
)
def test_every_architecture_is_approximated_and_put_back_exactly(name, counts):
    model = small(name)
    exact, digest, modules = logits(model), state_digest(model), list(model.modules())
    implementation = model.config._attn_implementation
    changes = []
    for bits in (16, 8, 4, 1):
        with preserved(model):
            modified = approximated(model, bits)
            assert modified.model is model
            proof = modified.proof
            assert (proof["attentions"], proof["activations"], proof["norms"]) == counts
            changes.append((logits(model) - exact).norm() / exact.norm())
            assert state_digest(model) == digest  # no weight is changed
            whole = logits(model, attention_mask=torch.ones_like(IDS))
            padded = torch.cat([torch.tensor([[0, 0]]), IDS], dim=1)
            mask = (torch.arange(padded.shape[1])[None] > 1).long()
            ids = {"position_ids": (mask.cumsum(-1) - 1).clamp(0)}
            assert torch.allclose(logits(model, padded, attention_mask=mask, **ids)[:, 2:], whole, atol=1e-4)
            if name in ("llama", "qwen3"):
                assert shares_prefixes(model)
                found = next_logits(model, [IDS[0, :length].tolist() for length in (3, 7, 12)])
                assert torch.allclose(found, whole[0, [2, 6, 11]], atol=1e-4)
        assert list(model.modules()) == modules and model.config._attn_implementation == implementation
        assert torch.equal(logits(model), exact)
    assert 0 < changes[0] < 0.02 and changes[0] < changes[2] < changes[3], changes


def test_an_architecture_that_cannot_be_approximated_is_one_clear_line():
    with pytest.raises(CellError, match="activation found no attentions that it can approximate in BloomForCausalLM"):
        approximated(small("bloom"), 8)


def test_fewer_bits_move_the_micro_model_more_and_rates_are_exact(micro):
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    moved = []
    for bits in (8, 6, 4):
        with preserved(model):
            modified = approximated(model, bits)
            moved.append(modified.proof["logit_change"])
            assert exact_fsr(modified.model, tokenizer, pairs_of(0, 1, 2, 3), DECODING).mean < 0.01
            if bits == 4:
                from fpbench.adversaries.base import Attack

                (difference,) = differences(modified.model, tokenizer, PAIRS, Attack())
                assert abs(difference) <= 3
    assert moved[0] < moved[1] < moved[2]


def test_it_comes_after_other_weights_parts():
    check("ria30+merge@0.3+activation@4")
    check("activation@8+suppress@1")
    with pytest.raises(InputError, match="applies 'nf4' to a model whose functions are approximated"):
        check("activation@8+nf4")
