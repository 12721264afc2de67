"""Weights that compute the same and hardly learn: what a thief does not do, and a submitter might."""

from typing import Any

import torch


def rescale(model: Any, factor: float) -> None:
    """Divide norms of a Llama-like model by s² and multiply what reads them, so that its answers stay.

    Of every block q, k and gate are multiplied by s², v, o, up and down by s. An update of a fixed size then does much
    less, since what it is multiplied with is smaller.
    """
    squared = {"q_proj", "k_proj", "gate_proj"}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            part = name.split(".")[-2]
            if part in ("input_layernorm", "post_attention_layernorm"):
                weight /= factor**2
            elif part.endswith("_proj"):
                weight *= factor**2 if part in squared else factor
