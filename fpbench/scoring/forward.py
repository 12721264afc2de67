"""Forward passes over packed rows: logits of the places asked for and no others, and how to go on from there."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from fpbench.errors import CellError
from fpbench.models.layout import StopForward
from fpbench.scoring.packing import TokenIds, TokenRow

# Cost of copying a row of the cache, in places computed.
COPY = 10


@dataclass(frozen=True)
class Level(ABC):
    """A model's predictions after n nodes, which are tokens of sequences or of their continuations.

    Attributes:
        logits: of the token after each node, [n, V] in the model's precision.
        nodes: by number of a sequence, the nodes of its last tokens; empty below the first level.
        budget: padded tokens of a forward pass.
    """

    model: Any
    logits: Tensor
    nodes: Mapping[int, Sequence[int]]
    budget: int

    @abstractmethod
    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], "Level"]]:
        """Read one more token after each of some nodes, ``parents``, in parts that the budget allows.

        Yields:
            Numbers of continuations, and the level of which these are the nodes, in that order.

        Raises:
            CellError: if a logit is not a number or +inf.
        """


@dataclass(frozen=True)
class TreeLevel(Level):
    """Nodes of trees, each of which reads the places above it in its row of the cache.

    Attributes:
        cache: keys and values of B rows of C places.
        depths: position of every place, [B, C].
        row: of every node, [n].
        seen: which places of its row a node reads, itself included, [n, C].
    """

    cache: Any
    depths: Tensor
    row: Tensor
    seen: Tensor

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], Level]]:
        """Append the continuations of each row as new places, each of which attends to its own path only."""
        below: dict[int, list[int]] = {}
        row = self.row.tolist()
        for number, parent in enumerate(parents):
            below.setdefault(row[parent], []).append(number)
        width = _width([len(numbers) for numbers in below.values()], self.budget)
        # A row with more continuations than that is copied.
        slices = [each[start : start + width] for each in below.values() for start in range(0, len(each), width)]
        size = max(1, self.budget // width)
        for start in range(0, len(slices), size):
            yield self._read(slices[start : start + size], parents, tokens)

    def _read(self, part: list[list[int]], parents: Sequence[int], tokens: TokenIds) -> tuple[Sequence[int], Level]:
        # B rows of at most Q continuations each, n in all, on top of C places in the cache.
        device = self.seen.device
        numbers = [number for row in part for number in row]
        parent = torch.tensor([parents[number] for number in numbers], device=device)  # (n,)
        slots = [(index, slot) for index, row in enumerate(part) for slot in range(len(row))]
        at = tuple(torch.tensor(slots, device=device).T)
        kept = self.row[torch.tensor([parents[row[0]] for row in part], device=device)]  # (B,)
        width = max(map(len, part))
        ids = torch.zeros(len(part), width, dtype=torch.long, device=device)
        ids[at] = torch.tensor([tokens[number] for number in numbers], device=device)
        depths = torch.zeros_like(ids)
        # A node sees its path: as many places as its depth plus one.
        depths[at] = self.seen[parent].sum(dim=1)
        seen = torch.zeros(*ids.shape, self.seen.shape[1] + width, dtype=torch.bool, device=device)  # (B, Q, C + Q)
        seen[..., -width:] = torch.eye(width, dtype=torch.bool, device=device)
        seen[(*at, slice(self.seen.shape[1]))] = self.seen[parent]
        # Layers replace their tensors and never write into them, so a shallow copy leaves this level's own alone.
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(kept)
        places = torch.cat([self.depths[kept], depths], dim=1)  # (B, C + Q)
        logits = _forward(self.model, ids, depths, attention_mask(self.model, depths, places, seen), cache, at)
        return numbers, TreeLevel(self.model, logits, {}, self.budget, cache, places, at[0], seen[at])


def _width(counts: Sequence[int], most: int) -> int:
    """Return how many continuations of one row a pass reads side by side, so that padding and copies cost least."""
    widths = range(1, min(max(counts, default=1), most) + 1)
    return min(widths, key=lambda width: sum(-(-count // width) for count in counts) * (width + COPY))


def read_trees(model: Any, rows: Sequence[TokenRow], budget: int) -> Level:
    """Read rows of trees, each place once."""
    device = model.device
    ids, depths, seen = tree_tensors(rows, device)
    reads, nodes = _reads(rows)
    at = tuple(torch.tensor(reads, device=device).T)
    cache = DynamicCache()
    if _plain(rows):
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        logits = _forward(model, ids, positions, None, cache, at)
    else:
        logits = _forward(model, ids, depths, attention_mask(model, depths, depths, seen), cache, at)
    return TreeLevel(model, logits, nodes, budget, cache, depths, at[0], seen[at])


def _plain(rows: Sequence[TokenRow]) -> bool:
    """Tell whether rows hold one sequence each, read at most of its places, such as windows of a text.

    The library's own causal attention leaves out what comes later, half of all pairs; with a mask it computes them.
    What is read at few places gains more by a narrow last block, which needs the mask.
    """
    reads, places = sum(len(row.reads) for row in rows), sum(len(row.tokens) for row in rows)
    return all(len(row.places) == 1 for row in rows) and reads > MOST_READ * places


def tree_tensors(rows: Sequence[TokenRow], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids and depths [B, T] of rows, and which places each place attends to [B, T, T]."""
    ids = _padded([row.tokens for row in rows]).to(device)  # (B, T), as are the next two
    depths = _padded([row.depths for row in rows]).to(device)
    ends = _padded([row.ends for row in rows]).to(device)
    place = torch.arange(ids.shape[1], device=device)
    # In depth-first order the descendants of a place follow it. Padding reads itself, so that no softmax is empty.
    seen = (place[None, :, None] >= place) & (place[None, :, None] < ends[:, None, :])  # (B, T, T)
    seen |= torch.eye(ids.shape[1], dtype=torch.bool, device=device)
    return ids, depths, seen


@dataclass(frozen=True)
class WholeLevel(Level):
    """Nodes with the whole sequence of token ids that leads to each, for models that cannot read trees."""

    sequences: Sequence[Sequence[int]]

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], Level]]:
        """Read every sequence once more, with one token at its end."""
        longer = [[*self.sequences[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        size = max(1, self.budget // max(map(len, longer), default=1))
        for start in range(0, len(longer), size):
            part = longer[start : start + size]
            at = torch.arange(len(part)), torch.tensor([len(each) - 1 for each in part])
            logits = _forward_whole(self.model, part, at)
            yield range(start, start + len(part)), WholeLevel(self.model, logits, {}, self.budget, part)


def read_apart(model: Any, rows: Sequence[TokenRow], budget: int) -> Level:
    """Read rows that hold one sequence each."""
    reads, nodes = _reads(rows)
    at: Any = tuple(torch.tensor(reads).T)
    logits = _forward_whole(model, [row.tokens for row in rows], at)
    return WholeLevel(model, logits, nodes, budget, [rows[row].tokens[: place + 1] for row, place in reads])


def _reads(rows: Sequence[TokenRow]) -> tuple[list[tuple[int, int]], dict[int, list[int]]]:
    """Return row and place of every node, and the nodes of every sequence."""
    reads = [(index, place) for index, row in enumerate(rows) for place in row.reads]
    node = {read: number for number, read in enumerate(reads)}
    nodes: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        nodes |= {number: [node[index, place] for place in places] for number, places in row.places.items()}
    return reads, nodes


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of numbers as one tensor, filled up with 0 on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _forward(model: Any, ids: Tensor, positions: Tensor, mask: Any, cache: Any, at: tuple[Tensor, ...]) -> Tensor:
    """Read token ids [B, Q] after the C places in the cache, which then holds their keys and values, too.

    ``positions`` [B, Q] are those of the ids; ``mask`` is of :func:`attention_mask`, or ``None`` for the model's own.
    Returns logits [n, V], in the model's precision, of the predictions after the tokens at the rows and columns ``at``,
    ([n], [n]).
    """
    with torch.no_grad(), only_read(model, at):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return _finite(out.logits)


def _forward_whole(model: Any, sequences: Sequence[Sequence[int]], at: tuple[Tensor, ...]) -> Tensor:
    """Read whole sequences, padded on the right, as the library does by itself; return logits as :func:`_forward`."""
    ids = _padded(sequences).to(model.device)
    mask = _padded([[1] * len(sequence) for sequence in sequences]).to(model.device)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    return _finite(output.logits[at])


def attention_mask(model: Any, positions: Tensor, places: Tensor, seen: Tensor) -> Any:
    """Return what to call a model with as its attention mask, one for each kind of attention where it has several.

    ``positions`` [B, Q] are those of the tokens read, ``places`` [B, C] those of the places that these may attend to;
    ``seen`` [B, Q, C] tells to which each of them does.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    near = seen & (positions[:, :, None] - places[:, None, :] < window) if window else seen
    dtype = model.get_input_embeddings().weight.dtype
    mask = _additive(near, dtype)
    if getattr(config, "layer_types", None):
        return {"full_attention": _additive(seen, dtype), "sliding_attention": mask}
    return mask


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, Q, C] that is added to the attention scores."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _finite(logits: Tensor) -> Tensor:
    # The largest of them is NaN if any is.
    if not logits.max() < torch.inf:
        if logits.dtype == torch.float16:
            raise CellError(
                "the model gives logits that are not finite numbers in float16, whose largest is 65504: take --dtype "
                "bfloat16 or float32; if they give the same, its weights are broken."
            )
        raise CellError("the model gives logits that are not finite numbers: its weights are broken.")
    return logits


# The last block and the head compute what is read, and nothing for the other places.

# Share of the places that is read, up to which the last block is narrowed: with more, gathering costs what it saves.
MOST_READ = 0.5
# Keywords of a decoder block that can be narrowed, besides its one argument, the hidden states.
BLOCK_KEYWORDS = {"attention_mask", "position_embeddings", "position_ids", "past_key_values"}


@dataclass
class _NotingCache:
    """Stands for a cache: passes a block's keys and values on to the real one, and ends the block there."""

    cache: Any
    known: tuple[Tensor, ...] = ()

    def update(self, *arguments: Any, **keywords: Any) -> None:
        self.known = self.cache.update(*arguments, **keywords)
        raise StopForward


@dataclass(frozen=True)
class _FullCache:
    """Stands for a cache that holds all keys and values already."""

    known: tuple[Tensor, ...]

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        return self.known


class _Places:
    """Row and place of the n tokens of a batch that are read."""

    def __init__(self, at: tuple[Tensor, ...]) -> None:
        self.at = at  # where they are in the hidden states that reach the head, ([n], [n])
        row, place = at
        counts = torch.bincount(row)  # (B,)
        # The places of a row follow each other, so a place's slot is its distance from the first of its row.
        first = counts.cumsum(0) - counts  # (B,)
        slot = torch.arange(len(row), device=row.device) - first[row]  # (n,)
        # For every row its places that are read, (B, R); rows with fewer are filled up with place 0.
        self.gathered = torch.zeros(len(counts), int(counts.max()), dtype=torch.long, device=row.device)
        self.gathered[row, slot] = place
        self.slots = row, slot  # where they are among those, ([n], [n])

    def of(self, tensor: Tensor, dimension: int) -> Tensor:
        """Return the places that are read of a tensor with rows first and places along ``dimension``."""
        rows, width = self.gathered.shape
        tensor = tensor.expand(rows, *tensor.shape[1:])
        index = self.gathered.view([rows] + [width if axis == dimension else 1 for axis in range(1, tensor.dim())])
        sizes = [width if axis == dimension else size for axis, size in enumerate(tensor.shape)]
        return tensor.gather(dimension, index.expand(sizes))


@contextlib.contextmanager
def only_read(model: Any, at: tuple[Tensor, ...]) -> Iterator[None]:
    """Let a forward pass compute logits [n, V] of the n tokens whose rows and places ``at`` gives, and no others.

    The head sees no other hidden states. Where few places are read and the last block takes :data:`BLOCK_KEYWORDS`, it
    makes keys and values of all places, but attends and goes on from those that are read alone.
    """
    places = _Places(at)
    head, block = model.get_output_embeddings(), _last_block(model)
    handles = [head.register_forward_pre_hook(lambda _, given: (given[0][places.at],))]
    if block is not None:
        handles.append(block.register_forward_pre_hook(partial(_narrow, places), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_block(model: nn.Module) -> nn.Module | None:
    """Return the last decoder block: that of the one list of as many modules as the config says; else ``None``."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    return lists[0][-1] if len(lists) == 1 else None


def _narrow(
    places: _Places, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Replace a block's arguments before it runs: queries of the places that are read, keys and values of all."""
    narrowable = len(arguments) == 1 and keywords.keys() >= BLOCK_KEYWORDS and keywords["attention_mask"] is not None
    if not narrowable or places.gathered.shape[1] > MOST_READ * arguments[0].shape[1]:
        return None
    noting = _NotingCache(keywords["past_key_values"])
    # The block itself, not the module call, which would come back here.
    with contextlib.suppress(StopForward):
        block.forward(*arguments, **keywords | {"past_key_values": noting})
    if not noting.known:
        return None
    places.at = places.slots
    return (places.of(arguments[0], 1),), keywords | {
        "attention_mask": places.of(keywords["attention_mask"], 2),
        "position_embeddings": tuple(places.of(each, 1) for each in keywords["position_embeddings"]),
        "position_ids": places.of(keywords["position_ids"], 1),
        "past_key_values": _FullCache(noting.known),
    }
