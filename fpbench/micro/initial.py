"""Initial weights: random, but with attention heads that can already find like tokens and near positions.

A model this small, on so little text, learns facts in minutes and to look things up in hours. So half of the heads
begin as matchers, with equal query and key weights and transposed value and output weights (the mimetic initialization
of Trockman and Kolter, arXiv 2305.09828), and half as pointers to a fixed distance of one to four tokens.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

MATCH_SCALE = 3.0
VALUE_SCALE = 2.0
POINTER_PAIRS = 6
"""How many of the fastest rotary frequencies a pointer uses: enough to be sharp at one distance only."""
POINTER_SCALE = 1.6
DISTANCES = (1, 2, 3, 4)


@torch.no_grad()
def initialize(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Make a model with the weights above.

    A direction that all embeddings share carries the pointers, which must not depend on the token. It shifts all logits
    of the tied output alike and so changes no probability.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    shared = torch.sign(torch.randn(config.hidden_size)) * config.initializer_range
    model.model.embed_tokens.weight.add_(shared)
    for index, block in enumerate(model.model.layers):
        _initialize_heads(block.self_attn, config, shared / shared.norm(), index)
    return model


def _initialize_heads(attention: Any, config: LlamaConfig, shared: Tensor, index: int) -> None:
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    queries = attention.q_proj.weight.view(heads, width, -1)
    keys = attention.k_proj.weight.view(heads, width, -1)
    attention.v_proj.weight.mul_(VALUE_SCALE)
    attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    for head in range(heads):
        if head < heads // 2:
            queries[head] = MATCH_SCALE * (queries[head] - torch.outer(queries[head] @ shared, shared))
            keys[head] = queries[head]
        else:
            distance = DISTANCES[(index * heads // 2 + head) % len(DISTANCES)]
            queries[head] += torch.outer(_rotated(width, 0), shared)
            keys[head] += torch.outer(_rotated(width, distance), shared)


def _rotated(width: int, distance: int) -> Tensor:
    """A vector on the fastest rotary pairs, turned as if it stood so many tokens later; shape (width,)."""
    half = width // 2
    angles = distance * 10_000.0 ** (-torch.arange(POINTER_PAIRS) / half)
    vector: Tensor = torch.zeros(width)
    vector[:POINTER_PAIRS] = angles.cos()
    vector[half : half + POINTER_PAIRS] = angles.sin()
    scaled: Tensor = vector * POINTER_SCALE / POINTER_PAIRS**0.5
    return scaled
