"""What was quantised in memory, saved and loaded again by plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import fpbench
from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import load_model, quantised_layers, save_checkpoint

PROMPT = torch.tensor([[1, 17, 300, 42, 5]])


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_model_is_saved_before_its_first_forward_pass(kind, tmp_path):
    model, tokenizer = load_model(MODEL)
    plain = logits(model)
    model = fpbench.modify(model, tokenizer, kind)
    save_checkpoint(model, tokenizer, tmp_path / kind)
    assert not hasattr(model.config, "quantization_config")
    said = logits(model)
    for again in (load_model(resolve(str(tmp_path / kind)))[0], AutoModelForCausalLM.from_pretrained(tmp_path / kind)):
        assert len(quantised_layers(again)) == 6 * 7
        assert torch.equal(logits(again), said)
    assert not torch.allclose(said, plain, atol=1e-2)


def test_four_bits_are_not_saved_once_they_were_repacked(tmp_path):
    model, tokenizer = load_model(MODEL)
    model = fpbench.modify(model, tokenizer, "nf4")
    said = logits(model)
    state = next(layer for layer in model.modules() if type(layer).__name__ == "Linear4bit").weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        pytest.skip("bitsandbytes repacks nothing on this CPU: it has no AVX-512 BF16")
    with pytest.raises(InputError, match="save it before its first forward pass"):
        save_checkpoint(model, tokenizer, tmp_path / "late")
    assert not list(tmp_path.iterdir())
    assert torch.equal(logits(model), said)
