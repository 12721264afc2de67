"""What depends on δ: the blocks above z, from the lookup token on. Everything else is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fpbench.errors import InputError
from fpbench.methods.editing.objective import Row
from fpbench.methods.editing.observe import Passage, pad
from fpbench.methods.editing.trees import Trees
from fpbench.models.layout import layout

ATTENTION = ("sdpa", "eager")  # what takes any mask


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens before the lookup tokens; to an attention module it is a cache.

    Attributes:
        keys: [B, heads, P, ·].
        values: the same.
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the nodes after those of the prefix; nothing is kept."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


@dataclass(frozen=True)
class Call:
    """How one block is called on B trees of N nodes after prefixes of at most P tokens.

    Attributes:
        block: the block.
        mask: what is added to the attention scores, [B, 1, N, P + N].
        rotation: cosines and sines of the nodes' positions, [B, N, ·] each.
        positions: the nodes' positions [B, N].
        prefix: keys and values of the prefixes in this block.
    """

    block: nn.Module
    mask: Tensor
    rotation: tuple[Tensor, Tensor]
    positions: Tensor
    prefix: Prefix

    @classmethod
    def of(cls, block: nn.Module, keywords: dict[str, Any], layer: Any, trees: Trees, dtype: torch.dtype) -> "Call":
        """Narrow down the call that the model itself makes on whole rows.

        Args:
            block: the block.
            keywords: of the model's call.
            layer: keys and values of all tokens in this block.
            trees: the tokens that remain.
            dtype: of the hidden states.
        """
        visible, keys = trees.visible, trees.key_position
        if (whole := keywords["attention_mask"]) is not None:
            # The model's own mask knows about sliding windows; it is boolean for sdpa and additive for eager attention.
            seen = (whole if whole.dtype == torch.bool else whole == 0)[0, 0]
            visible = visible & seen[trees.position[:, :, None], keys[:, None, :]]
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        cosine, sine = (each[0][trees.position] for each in keywords["position_embeddings"])
        rows, width = trees.row[:, 0], keys.shape[1] - visible.shape[1]
        prefix = Prefix(layer.keys[rows, :, :width], layer.values[rows, :, :width])
        return cls(block, mask[:, None], (cosine, sine), trees.position, prefix)

    def only(self, trees: Tensor) -> "Call":
        """The same call on some of the trees, a mask [B]."""
        cosine, sine = self.rotation
        prefix = Prefix(self.prefix.keys[trees], self.prefix.values[trees])
        return Call(self.block, self.mask[trees], (cosine[trees], sine[trees]), self.positions[trees], prefix)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block on hidden states [B, N, h]."""
        output: Tensor = self.block(
            hidden,
            attention_mask=self.mask,
            position_embeddings=self.rotation,
            position_ids=self.positions,
            past_key_values=self.prefix,
            use_cache=True,
        )
        return output


@dataclass(frozen=True)
class UpperBlocks:
    """Predictions at all S read positions as a function of δ, at the price of B trees of N nodes.

    Attributes:
        norm: the normalisation before the head.
        head: the linear map to logits.
        calls: the blocks above z.
        trees: the tokens that δ reaches.
        hidden: output of block z at their nodes, [B, N, h].
        constant: logits where δ does not, or no longer, reach, [S, V] float32.
    """

    norm: nn.Module
    head: nn.Module
    calls: Sequence[Call]
    trees: Trees
    hidden: Tensor
    constant: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, block: int, rows: Sequence[Row]) -> "UpperBlocks":
        """Run ``model`` once on ``rows``, where ``block`` is z.

        Raises:
            InputError: if the model's attention takes no mask.
        """
        attention = model.config._attn_implementation  # type: ignore[union-attr]
        if attention not in ATTENTION:
            raise InputError(
                f"editing needs attention 'sdpa' or 'eager', found {attention!r}: load the model with one of them."
            )
        parts = layout(model)
        device: Any = parts.head.weight.device
        last = len(parts.blocks) - 1
        cache = DynamicCache()
        passage = Passage(model, pad([row.ids for row in rows], device), block + 1, last, cache)
        trees = Trees.of(rows, device)
        hidden = passage.hidden[block + 1][trees.row, trees.position]
        calls = [
            Call.of(parts.blocks[number], passage.keywords[number], cache.layers[number], trees, hidden.dtype)
            for number in range(block + 1, last + 1)
        ]
        reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
        at = tuple(torch.tensor(reads, device=device).T)
        constant = parts.head(parts.norm(passage.hidden[last + 1][at])).float()
        return cls(parts.norm, parts.head, calls, trees, hidden, constant)

    def v0(self) -> Tensor:
        """v₀ of every request, the output of block z at the lookup token of its first row, [n, h] float32."""
        owners = self.trees.request.tolist()
        return self.hidden[[owners.index(request) for request in range(max(owners) + 1)], 0].float()

    def logits(self, delta: Tensor) -> Tensor:
        """Predictions at the read positions, [S, V] float32, after adding δ [n, h] at the lookup tokens."""
        root = self.hidden[:, 0].float() + delta[self.trees.request]
        hidden = torch.cat([root[:, None].to(self.hidden.dtype), self.hidden[:, 1:]], dim=1)
        for call in self.calls:
            hidden = call(hidden)
        logits = self.head(self.norm(hidden[self.trees.tree, self.trees.slot])).float()
        return self.constant.index_copy(0, self.trees.read, logits[self.trees.node])

    def only(self, active: Tensor, logits: Tensor) -> "UpperBlocks":
        """Go on with some requests alone, a mask [n]; the others' predictions stay what they are in ``logits``."""
        kept = active[self.trees.request]
        calls = [call.only(kept) for call in self.calls]
        return UpperBlocks(self.norm, self.head, calls, self.trees.only(kept), self.hidden[kept], logits)
