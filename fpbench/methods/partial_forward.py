"""What a target value is optimised for: sequences with labels, and a loss over them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fpbench.errors import InputError
from fpbench.models.layout import layout


@dataclass(frozen=True)
class Row:
    """One sequence of one request, T tokens.

    Attributes:
        request: number of the request, 0 … n−1; the first row of a request is its bare prompt.
        ids: token ids [T].
        lookup: where the request's δ is added.
        positions: where the model's prediction is read.
        labels: the token to be predicted at each of the positions; empty if only the distribution is looked at.
    """

    request: int
    ids: Sequence[int]
    lookup: int
    positions: Sequence[int]
    labels: Sequence[int] = ()

    @classmethod
    def of(cls, request: int, prompt: Sequence[int], answer: Sequence[int]) -> "Row":
        """An answer after a prompt, teacher-forced, with δ at the prompt's last token."""
        lookup = len(prompt) - 1
        return cls(request, [*prompt, *answer[:-1]], lookup, range(lookup, lookup + len(answer)), answer)


# Looking inside forward passes, and taking them up again half-way.


class _SeenAll(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    """Everything that was asked for has been seen."""


def pad(sequences: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Token ids as one right-padded tensor [rows, T].

    No attention mask goes with it: in a causal model the padding comes after, and so cannot reach, any real token.
    """
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.no_grad()
def output_of(model: nn.Module, ids: Tensor, module: nn.Module, cache: Any = None) -> Tensor:
    """What comes out of ``module``, [rows, T, ·], when ``model`` is run on ``ids`` [rows, T] no further than that.

    Args:
        model: a causal language model.
        ids: token ids.
        module: to look behind.
        cache: a cache of the library's, which takes up keys and values on the way.
    """
    seen: list[Tensor] = []

    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)
        raise _SeenAll

    with module.register_forward_hook(after), suppress(_SeenAll):
        model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
    return seen[0]


@torch.no_grad()
def visit(model: nn.Module, ids: Tensor, modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> None:
    """Run ``model`` on ``ids`` [rows, T], no further than needed, and keep nothing of what passes by.

    Args:
        model: a causal language model.
        ids: token ids.
        modules: to look in front of.
        see: is given the number of each module and what goes into it, [rows, T, ·], on the way.
    """
    left = set(range(len(modules)))

    def before(number: int, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        see(number, arguments[0])
        left.discard(number)
        if not left:
            raise _SeenAll

    with ExitStack() as hooks:
        for number, module in enumerate(modules):
            hooks.enter_context(module.register_forward_pre_hook(partial(before, number)))
        with suppress(_SeenAll):
            model(input_ids=ids, use_cache=False)


class Passage:
    """A batch on its way through blocks ``first`` … ``last``, which can be taken up again at any of them.

    Attributes:
        hidden: by number of a block what went into it, [rows, T, h]; ``hidden[last + 1]`` came out of the last one.
        keywords: by number of a block what the model calls it with besides: masks, positions.
    """

    def __init__(self, model: nn.Module, ids: Tensor, first: int, last: int, cache: Any = None) -> None:
        """Run ``model`` on ``ids`` [rows, T] up to block ``last``; ``cache`` is that of :func:`output_of`."""
        self.blocks = layout(model).blocks
        self.last = last
        self.hidden: dict[int, Tensor] = {}
        self.keywords: dict[int, dict[str, Any]] = {}
        with ExitStack() as hooks:
            for number in range(first, last + 1):
                note = partial(self._note, number)
                hooks.enter_context(self.blocks[number].register_forward_pre_hook(note, with_kwargs=True))
            self.hidden[last + 1] = output_of(model, ids, self.blocks[last], cache)

    def _note(self, number: int, block: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        self.hidden[number], self.keywords[number] = arguments[0], keywords

    @torch.no_grad()
    def again(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        for number in range(block, self.last + 1):
            self.hidden[number + 1] = self.blocks[number](self.hidden[number], **self.keywords[number])


@contextmanager
def inputs_at(modules: Sequence[nn.Module], at: tuple[Tensor, Tensor], seen: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Note what goes into ``modules`` at some positions, whenever they are called inside.

    Args:
        modules: of one model.
        at: row and position, [K] each.
        seen: takes up the latest input of each module, [K, ·].
    """

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[module] = arguments[0][at]

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(note))
        yield


# Rows that share a prompt, packed: they differ only after the lookup token.


Path = tuple[int, ...]


@dataclass(frozen=True)
class Trees:
    """The tokens that δ can reach: for each of B prompts a tree of at most N nodes.

    The root of a tree is the prompt's last token, the lookup token; every row with that prompt is a path from it.

    Attributes:
        request: whose the tree is, [B].
        row: a row in which the node occurs, [B, N].
        position: its position there, [B, N].
        above: whether node j is on the way from the root to node i, or is it, [B, N, N].
        tree: of the U nodes whose prediction is read, the tree …
        slot: … and the place in it, [U] each.
        read: of the R reads that δ can reach, the number among all reads …
        node: … and the number among the U nodes, [R] each.
    """

    request: Tensor
    row: Tensor
    position: Tensor
    above: Tensor
    tree: Tensor
    slot: Tensor
    read: Tensor
    node: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Trees":
        """Pack ``rows``; places that a smaller tree leaves free see nothing but themselves."""
        numbers: dict[tuple[int, Path], int] = {}
        trees: list[dict[Path, tuple[int, int]]] = []  # a node is named by the way to it
        nodes: dict[tuple[int, int], int] = {}
        reads: list[tuple[int, int]] = []
        count = 0
        for index, row in enumerate(rows):
            number = numbers.setdefault((row.request, tuple(row.ids[: row.lookup + 1])), len(trees))
            if number == len(trees):
                trees.append({})
            for position in range(row.lookup, max(row.positions) + 1):
                trees[number].setdefault(tuple(row.ids[: position + 1]), (index, position))
            for position in row.positions:
                if position >= row.lookup:
                    slot = list(trees[number]).index(tuple(row.ids[: position + 1]))
                    reads.append((count, nodes.setdefault((number, slot), len(nodes))))
                count += 1
        width = max(map(len, trees))
        at = torch.zeros(len(trees), width, 2, dtype=torch.long)
        above = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
        for number, paths in enumerate(trees):
            at[number, : len(paths)] = torch.tensor(list(paths.values()))
            for slot, path in enumerate(paths):
                above[number, slot, : len(paths)] = torch.tensor([path[: len(other)] == other for other in paths])
        request = torch.tensor([request for request, _ in numbers])
        (tree, slot), (read, node) = torch.tensor(list(nodes)).T, torch.tensor(reads).T
        tensors = request, at[..., 0], at[..., 1], above, tree, slot, read, node
        return cls(*(each.to(device) for each in tensors))

    @property
    def visible(self) -> Tensor:
        """Whether a node sees a token of the P that its prefix may have, or a node, [B, N, P + N]."""
        lookup = self.position[:, :1]
        prefix = torch.arange(int(lookup.max()), device=lookup.device) < lookup
        return torch.cat([prefix[:, None].expand(-1, self.row.shape[1], -1), self.above], dim=2)

    @property
    def key_position(self) -> Tensor:
        """Positions of what can be seen, [B, P + N]."""
        lookup = self.position[:, :1]
        prefix = torch.arange(int(lookup.max()), device=lookup.device).expand(len(lookup), -1)
        return torch.cat([prefix, self.position], dim=1)

    def only(self, kept: Tensor) -> "Trees":
        """Some of the trees, a mask [B], with their nodes and reads."""
        nodes = kept[self.tree]
        reads = nodes[self.node]
        return Trees(
            self.request[kept],
            self.row[kept],
            self.position[kept],
            self.above[kept],
            _renumbered(kept)[self.tree[nodes]],
            self.slot[nodes],
            self.read[reads],
            _renumbered(nodes)[self.node[reads]],
        )


def _renumbered(kept: Tensor) -> Tensor:
    """For everything that is kept, its number among what is kept."""
    return kept.cumsum(0) - 1


# What depends on δ: the blocks above z, from the lookup token on. Everything else is computed once.


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
