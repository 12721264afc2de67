"""Random models of many architectures, with the names that each gives to its parts."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

HIDDEN, WIDE, BLOCKS = 32, 48, 4


@dataclass(frozen=True)
class Shape:
    """What is said of one architecture, by hand."""

    config: dict[str, Any] = field(default_factory=dict)
    blocks: str = "model.layers"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str | None = "mlp.gate_proj"
    norm: str | None = None  # what the FFN's output goes through before it is added to the stream
    factor: float = 1.0  # what it is multiplied by
    turned: bool = False  # the weight is kept as [in, out]
    eager: bool = False  # attention is to be plain


GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8, "head_dim": 8, "sliding_window": 4}
AFTER = "post_feedforward_layernorm"
SHAPES = {
    "llama": Shape({"mlp_bias": True, "attention_bias": True}),
    "mistral": Shape({"sliding_window": 4}),
    "qwen2": Shape({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": Shape({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "head_dim": 12}),
    "gemma2": Shape(GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}, norm=AFTER, eager=True),
    "gemma3": Shape(GEMMA, blocks="model.language_model.layers", norm=AFTER),
    "phi3": Shape({"sliding_window": 4, "pad_token_id": 0}, up="mlp.gate_up_proj", gate="mlp.gate_up_proj"),
    "olmo2": Shape(norm=AFTER),
    "smollm3": Shape({"no_rope_layers": [1, 0, 1, 0], "pad_token_id": 0, "mlp_bias": True}),
    "granite": Shape(
        {"residual_multiplier": 0.22, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
        factor=0.22,
    ),
    "gpt2": Shape(
        {"n_inner": WIDE, "n_positions": 512}, "transformer.h", "mlp.c_proj", "mlp.c_fc", gate=None, turned=True
    ),
    "gpt_neox": Shape({}, "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h", gate=None),
    "opt": Shape({"ffn_dim": WIDE, "word_embed_proj_dim": HIDDEN}, "model.decoder.layers", "fc2", "fc1", gate=None),
    "cohere": Shape({"logit_scale": 0.25}),
    "glm4": Shape(
        {"head_dim": 8, "pad_token_id": 0}, up="mlp.gate_up_proj", gate="mlp.gate_up_proj", norm="post_mlp_layernorm"
    ),
}


def tiny(kind: str, attention: str | None = None, vocabulary: int = 40, config: dict[str, Any] | None = None) -> Any:
    """A model of an architecture, 4 blocks, with sliding windows of 4 tokens where there are such."""
    shape = SHAPES[kind]
    sizes = {"vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": BLOCKS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    settings = sizes | heads | {"initializer_range": 0.15} | shape.config | (config or {})
    torch.manual_seed(0)
    attention = attention or ("eager" if shape.eager else "sdpa")
    if kind == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        whole = Gemma3Config(text_config=settings, vision_config=vision, mm_tokens_per_image=4)
        model: Any = Gemma3ForConditionalGeneration._from_config(whole, attn_implementation=attention)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, which start at 0 and 1, are as random
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def projection(model: Any, kind: str, block: int) -> Any:
    """The FFN output projection, by the name that is written down here."""
    return model.get_submodule(f"{SHAPES[kind].blocks}.{block}.{SHAPES[kind].down}")


def block_of(model: Any, kind: str, block: int) -> Any:
    return model.get_submodule(f"{SHAPES[kind].blocks}.{block}")
