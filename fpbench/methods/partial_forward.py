"""Partial forward passes: look inside a model, run some blocks again, predict as a function of δ alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fpbench.errors import InputError
from fpbench.models.layout import StopForward, layout, watched


@dataclass(frozen=True)
class Row:
    """One sequence of one request, T tokens."""

    request: int  # number of the request, 0 … n−1; the first row of a request is its bare prompt
    ids: Sequence[int]  # token ids [T]
    lookup: int  # where the request's δ is added
    positions: Sequence[int]  # where the model's prediction is read
    # the token to be predicted at each of the positions; empty if only the distribution is looked at
    labels: Sequence[int] = ()

    @classmethod
    def of(cls, request: int, prompt: Sequence[int], answer: Sequence[int]) -> "Row":
        """Make the row of an answer after a prompt, teacher-forced, with δ at the prompt's last token."""
        lookup = len(prompt) - 1
        return cls(request, [*prompt, *answer[:-1]], lookup, range(lookup, lookup + len(answer)), answer)


def pad(sequences: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Return token ids as one right-padded tensor [rows, T].

    No attention mask goes with it: in a causal model the padding comes after, and so cannot reach, any real token.
    """
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.no_grad()
def visit(model: nn.Module, ids: Tensor, modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> None:
    """Run ``model`` on ``ids`` [rows, T] no further than to the last of the :func:`watched` modules; keep nothing."""
    left = set(range(len(modules)))

    def look(number: int, hidden: Tensor) -> None:
        see(number, hidden)
        left.discard(number)
        if not left:
            raise StopForward

    with watched(modules, look), suppress(StopForward):
        model(input_ids=ids, use_cache=False)


class BlockRun:
    """One batch run through blocks ``first`` … ``last``, which can be repeated from any of them on.

    Attributes:
        hidden: by number of a block what went into it, [rows, T, h]; ``hidden[last + 1]`` came out of the last one.
        keywords: by number of a block what the model calls it with besides: masks, positions.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, ids: Tensor, first: int, last: int, cache: Any = None, **given: Any) -> None:
        """Run ``model`` on ``ids`` [rows, T] up to block ``last``; keys and values go into a ``cache``, if given.

        It is called with everything else that is ``given``, such as a mask and positions.
        """
        self.blocks, self.last = layout(model).blocks, last
        self.hidden: dict[int, Tensor] = {}
        self.keywords: dict[int, dict[str, Any]] = {}

        def before(number: int, block: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
            self.hidden[number], self.keywords[number] = arguments[0], keywords

        def after(block: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self.hidden[last + 1] = output
            raise StopForward

        with ExitStack() as hooks, suppress(StopForward):
            for number in range(first, last + 1):
                note = partial(before, number)
                hooks.enter_context(self.blocks[number].register_forward_pre_hook(note, with_kwargs=True))
            hooks.enter_context(self.blocks[last].register_forward_hook(after))
            model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **given)

    @torch.no_grad()
    def repeat(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        for number in range(block, self.last + 1):
            self.hidden[number + 1] = self.blocks[number](self.hidden[number], **self.keywords[number])


# Rows that share a prompt, packed: they differ only after the lookup token.


Path = tuple[int, ...]


@dataclass(frozen=True)
class Trees:
    """The tokens that δ can reach: for each of B prompts a tree of at most N nodes.

    The root of a tree is the prompt's last token, the lookup token; every row with that prompt is a path from it.
    """

    request: Tensor  # whose the tree is, [B]
    row: Tensor  # a row in which the node occurs, [B, N]
    position: Tensor  # its position there, [B, N]
    above: Tensor  # whether node j is on the way from the root to node i, or is it, [B, N, N]
    tree: Tensor  # of the U nodes whose prediction is read, the tree …
    slot: Tensor  # … and the place in it, [U] each
    read: Tensor  # of the R reads that δ can reach, the number among all reads …
    node: Tensor  # … and the number among the U nodes, [R] each

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Trees":
        """Pack ``rows``; places that a smaller tree leaves free see only themselves."""
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

    def only(self, kept: Tensor) -> "Trees":
        """Return some of the trees, a mask [B], with their nodes and reads."""
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
    """Return for everything that is kept its number among what is kept."""
    return kept.cumsum(0) - 1


# What depends on δ: the blocks above z, from the lookup token on. Everything else is computed once.


ATTENTION = ("sdpa", "eager")  # what takes any mask


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens before the lookup tokens, in the form of a cache for an attention module."""

    keys: Tensor  # [B, heads, P, ·]
    values: Tensor  # the same

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix, then those of the nodes; nothing is kept."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def tree_keywords(keywords: dict[str, Any], layer: Any, trees: Trees, dtype: torch.dtype) -> dict[str, Any]:
    """Return what to call a block with on B trees of N nodes, after prefixes of at most P tokens.

    The model itself calls it with ``keywords`` on whole rows; ``layer`` has keys and values of all tokens in it.
    """
    lookup, nodes = trees.position[:, :1], trees.position.shape[1]  # (B, 1), N
    prefix = torch.arange(int(lookup.max()), device=lookup.device).expand(len(lookup), -1)  # (B, P)
    # A node sees the tokens before its lookup token, and the nodes on the way to it.
    visible = torch.cat([(prefix < lookup)[:, None].expand(-1, nodes, -1), trees.above], dim=2)  # (B, N, P + N)
    keys = torch.cat([prefix, trees.position], dim=1)  # (B, P + N)
    if (whole := keywords["attention_mask"]) is not None:
        # The model's own mask knows about sliding windows; it is boolean for sdpa and additive for eager attention.
        seen = (whole if whole.dtype == torch.bool else whole == 0)[0, 0]
        visible = visible & seen[trees.position[:, :, None], keys[:, None, :]]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    rows, width = trees.row[:, 0], prefix.shape[1]
    return {
        "attention_mask": mask[:, None],  # (B, 1, N, P + N)
        "position_embeddings": tuple(each[0][trees.position] for each in keywords["position_embeddings"]),
        "position_ids": trees.position,
        "past_key_values": Prefix(layer.keys[rows, :, :width], layer.values[rows, :, :width]),
        "use_cache": True,
    }


def of_trees(keywords: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Return the keywords of :func:`tree_keywords` for some of the trees, a mask [B]."""
    prefix = keywords["past_key_values"]
    return keywords | {
        "attention_mask": keywords["attention_mask"][kept],
        "position_embeddings": tuple(each[kept] for each in keywords["position_embeddings"]),
        "position_ids": keywords["position_ids"][kept],
        "past_key_values": Prefix(prefix.keys[kept], prefix.values[kept]),
    }


@dataclass(frozen=True)
class UpperBlocks:
    """Predictions at all S read positions as a function of δ, at the price of B trees of N nodes."""

    norm: nn.Module  # the normalisation before the head
    head: nn.Module  # the linear map to logits
    blocks: Sequence[nn.Module]  # the blocks above z
    keywords: Sequence[dict[str, Any]]  # what each of them is called with
    trees: Trees  # the tokens that δ reaches
    hidden: Tensor  # output of block z at their nodes, [B, N, h]
    constant: Tensor  # logits where δ does not, or no longer, reach, [S, V] float32

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
        run = BlockRun(model, pad([row.ids for row in rows], device), block + 1, last, cache)
        trees = Trees.of(rows, device)
        hidden = run.hidden[block + 1][trees.row, trees.position]  # (B, N, h)
        keywords = [
            tree_keywords(run.keywords[number], cache.layers[number], trees, hidden.dtype)
            for number in range(block + 1, last + 1)
        ]
        reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
        at = tuple(torch.tensor(reads, device=device).T)
        constant = parts.head(parts.norm(run.hidden[last + 1][at])).float()  # (S, V)
        return cls(parts.norm, parts.head, parts.blocks[block + 1 :], keywords, trees, hidden, constant)

    def v0(self) -> Tensor:
        """Return v₀ of every request, the output of block z at the lookup token of its first row, [n, h] float32."""
        owners = self.trees.request.tolist()
        return self.hidden[[owners.index(request) for request in range(max(owners) + 1)], 0].float()

    def logits(self, delta: Tensor) -> Tensor:
        """Return the predictions at the read positions, [S, V] float32, after adding δ [n, h] at the lookup tokens."""
        root = self.hidden[:, 0].float() + delta[self.trees.request]
        hidden = torch.cat([root[:, None].to(self.hidden.dtype), self.hidden[:, 1:]], dim=1)  # (B, N, h)
        for block, keywords in zip(self.blocks, self.keywords, strict=True):
            hidden = block(hidden, **keywords)
        logits = self.head(self.norm(hidden[self.trees.tree, self.trees.slot])).float()  # (U, V)
        return self.constant.index_copy(0, self.trees.read, logits[self.trees.node])

    def only(self, active: Tensor, logits: Tensor) -> "UpperBlocks":
        """Go on with some requests alone, a mask [n]; the others' predictions stay what they are in ``logits``."""
        kept = active[self.trees.request]
        keywords = [of_trees(each, kept) for each in self.keywords]
        return replace(self, keywords=keywords, trees=self.trees.only(kept), hidden=self.hidden[kept], constant=logits)
