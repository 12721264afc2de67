"""Nothing is computed behind the last keys and values but for the places that are read."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Of the places of a batch that are read: with more, gathering them costs what it saves.
FEW = 0.5
# What a block of the common make is called with besides its hidden states.
USUAL = {"attention_mask", "position_embeddings", "position_ids", "past_key_values"}


class _Noted(Exception):  # noqa: N818 - a signal that ends a block, not an error
    """The block has handed over its keys and values."""


@dataclass
class _Noting:
    """To an attention module a cache: passes keys and values on to the real one, and then goes no further."""

    cache: Any
    known: tuple[Tensor, ...] = ()

    def update(self, *arguments: Any, **keywords: Any) -> None:
        self.known = self.cache.update(*arguments, **keywords)
        raise _Noted


@dataclass(frozen=True)
class _Known:
    """To an attention module a cache that has all keys and values already."""

    keys: Tensor
    values: Tensor

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


@dataclass
class _Places:
    """The places that are read, and where they stand once a block has narrowed its batch down to them.

    Attributes:
        at: row and place of each, [n].
        gathered: for every row the places that are read, [B, R], filled up with any.
        narrowed: whether the batch holds nothing else.
    """

    at: tuple[Tensor, ...]
    gathered: Tensor = field(init=False)
    now: tuple[Tensor, ...] = field(init=False)
    narrowed: bool = False

    def __post_init__(self) -> None:
        row, place = self.at
        counts = torch.bincount(row)
        # The places of a row follow each other, so a place's slot is its distance from the first of its row.
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(row), device=row.device) - first[row]
        self.gathered = torch.zeros(len(counts), int(counts.max()), dtype=torch.long, device=row.device)
        self.gathered[row, slot] = place
        self.now = row, slot

    def of(self, tensor: Tensor, dimension: int) -> Tensor:
        """Of a tensor with rows first, the places that are read along a dimension."""
        rows = len(self.gathered)
        tensor = tensor.expand(rows, *tensor.shape[1:])
        shape = [rows] + [1] * (tensor.dim() - 1)
        shape[dimension] = self.gathered.shape[1]
        index = self.gathered.view(shape).expand(
            *(self.gathered.shape[1] if axis == dimension else size for axis, size in enumerate(tensor.shape))
        )
        return tensor.gather(dimension, index)


@contextlib.contextmanager
def only_read(model: Any, at: tuple[Tensor, ...]) -> Iterator[None]:
    """Let a forward pass compute logits [n, V] of ``at``, row and place of the n tokens that are read, and no others.

    The head sees no other hidden states. Where few places are read and the last block is of the common make, it makes
    keys and values of all places, but attends and goes on from those that are read alone.
    """
    places = _Places(at)
    handles = [model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (_chosen(given[0], places),))]
    block = _last_block(model)
    if block is not None:
        handles.append(block.register_forward_pre_hook(partial(_narrow, places), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chosen(hidden: Tensor, places: _Places) -> Tensor:
    return hidden[places.now if places.narrowed else places.at]


def _narrow(
    places: _Places, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Change the call of a block, in front of it: few queries, all keys and values."""
    usual = len(arguments) == 1 and keywords.keys() >= USUAL
    if not usual or places.gathered.shape[1] > FEW * arguments[0].shape[1]:
        return None
    noting = _Noting(keywords["past_key_values"])
    # The block itself, not the module call, which would come back here.
    with contextlib.suppress(_Noted):
        block.forward(*arguments, **keywords | {"past_key_values": noting})
    if not noting.known:
        return None
    places.narrowed = True
    return (places.of(arguments[0], 1),), keywords | {
        "attention_mask": places.of(keywords["attention_mask"], 2),
        "position_embeddings": tuple(places.of(each, 1) for each in keywords["position_embeddings"]),
        "position_ids": places.of(keywords["position_ids"], 1),
        "past_key_values": _Known(*noting.known),
    }


def _last_block(model: nn.Module) -> nn.Module | None:
    """The last of a model's decoder blocks, as far as they are a list of as many modules as its config says."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    return lists[0][-1] if len(lists) == 1 else None
