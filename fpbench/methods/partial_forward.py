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
from fpbench.models.layout import Layout, StopForward, call_of, layout, stream, watched
from fpbench.models.residual_stream import Contribution, contributions


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


def apart(values: Tensor, ids: Tensor) -> Tensor:
    """Return what a module was given for token ids [rows, T] as [rows, T, ·]; some get rows laid end to end."""
    return values.view(*ids.shape, values.shape[-1])


@torch.no_grad()
def visit(model: nn.Module, ids: Tensor, modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> None:
    """Run ``model`` on ``ids`` [rows, T] no further than to the last of the :func:`watched` modules; keep nothing."""
    left = set(range(len(modules)))

    def look(number: int, hidden: Tensor) -> None:
        see(number, apart(hidden, ids))
        left.discard(number)
        if not left:
            raise StopForward

    with watched(modules, look), suppress(StopForward):
        model(input_ids=ids, use_cache=False)


class BlockRun:
    """One batch run through blocks ``first`` … ``last``, which can be repeated from any of them on.

    Attributes:
        hidden: by number of a block what went into it, [rows, T, h]; ``hidden[last + 1]`` came out of the last one.
        keywords: by number of a block what the model calls it with besides, by name: masks, positions.
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
            self.hidden[number], self.keywords[number] = call_of(block, arguments, keywords)

        def after(block: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
            self.hidden[last + 1] = stream(output)
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
            self.hidden[number + 1] = stream(self.blocks[number](self.hidden[number], **self.keywords[number]))


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


# Names under which a model hands its blocks a cache.
CACHES = ("past_key_values", "layer_past")
# What a block is called with that changes with the tokens it reads; any other tensor is unknown.
OF_TOKENS = {"attention_mask", "position_embeddings", "position_ids", "cache_position", *CACHES}


def tree_keywords(keywords: dict[str, Any], layer: Any, trees: Trees, dtype: torch.dtype) -> dict[str, Any]:
    """Return what to call a block with on B trees of N nodes, after prefixes of at most P tokens.

    The model itself calls it with ``keywords`` on whole rows; ``layer`` has keys and values of all tokens in it.
    """
    lookup, nodes = trees.position[:, :1], trees.position.shape[1]  # (B, 1), N
    prefix = torch.arange(int(lookup.max()), device=lookup.device).expand(len(lookup), -1)  # (B, P)
    # A node sees the tokens before its lookup token, and the nodes on the way to it.
    visible = torch.cat([(prefix < lookup)[:, None].expand(-1, nodes, -1), trees.above], dim=2)  # (B, N, P + N)
    keys = torch.cat([prefix, trees.position], dim=1)  # (B, P + N)
    if (whole := keywords.get("attention_mask")) is not None:
        # The model's own mask knows about sliding windows; it is boolean for sdpa and additive for eager attention.
        seen = (whole if whole.dtype == torch.bool else whole == 0)[0, 0]
        visible = visible & seen[trees.position[:, :, None], keys[:, None, :]]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    rows, width = trees.row[:, 0], prefix.shape[1]
    (cache,) = [name for name in CACHES if keywords.get(name) is not None]
    found = (
        {name: value for name, value in keywords.items() if name not in OF_TOKENS}
        | {
            "attention_mask": mask[:, None],  # (B, 1, N, P + N)
            cache: Prefix(layer.keys[rows, :, :width], layer.values[rows, :, :width]),
        }
    )
    if (embeddings := keywords.get("position_embeddings")) is not None:
        found["position_embeddings"] = tuple(each[0][trees.position] for each in embeddings)
    if keywords.get("position_ids") is not None:
        found["position_ids"] = trees.position
    return found


def unknown_keyword(keywords: dict[str, Any]) -> str | None:
    """Return what a model gives its blocks that :func:`tree_keywords` does not know, such as ALiBi's slopes."""
    unknown = [name for name, value in keywords.items() if isinstance(value, Tensor) and name not in OF_TOKENS]
    return unknown[0] if unknown else None


def of_trees(keywords: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Return the keywords of :func:`tree_keywords` for some of the trees, a mask [B]."""

    def part(value: Any) -> Any:
        if isinstance(value, Prefix):
            return Prefix(value.keys[kept], value.values[kept])
        if isinstance(value, tuple):
            return tuple(each[kept] for each in value)
        return value[kept] if isinstance(value, Tensor) else value

    return {name: part(value) if name in OF_TOKENS else value for name, value in keywords.items()}


# How far logits may be from those that the model itself gives, in units of these: rounding in bfloat16 stays below.
TOLERANCE = 0.05


@dataclass(frozen=True)
class UpperBlocks:
    """Predictions at all S read positions as a function of δ, at the price of B trees of N nodes."""

    parts: Layout
    blocks: Sequence[nn.Module]  # the blocks above z
    keywords: Sequence[dict[str, Any]]  # what each of them is called with
    trees: Trees  # the tokens that δ reaches
    hidden: Tensor  # output of block z at their nodes, [B, N, h]
    added: Contribution  # what block z adds to the stream …
    before: Tensor  # … for this output of its FFN at the roots, [B, h]
    constant: Tensor  # logits where δ does not, or no longer, reach, [S, V] float32

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, block: int, rows: Sequence[Row]) -> "UpperBlocks":
        """Run ``model`` once on ``rows``, where ``block`` is z.

        Raises:
            InputError: if the model's attention takes no mask, or its predictions come about in a way not known here.
        """
        attention = model.config.get_text_config()._attn_implementation  # type: ignore[union-attr, operator]
        if attention not in ATTENTION:
            raise InputError(
                f"editing needs attention 'sdpa' or 'eager', found {attention!r}: load the model with one of them."
            )
        parts = layout(model)
        device: Any = parts.head.weight.device
        last, projection = len(parts.blocks) - 1, parts.down_proj(block)
        cache = DynamicCache()
        trees = Trees.of(rows, device)
        ids = pad([row.ids for row in rows], device)  # (rows, T)
        keys: list[Tensor] = []
        with watched([projection], lambda _, given: keys.append(apart(given, ids)[trees.row, trees.position][:, 0])):
            run = BlockRun(model, ids, block, last, cache)
        hidden = run.hidden[block + 1][trees.row, trees.position]  # (B, N, h)
        if unknown := next(filter(None, map(unknown_keyword, run.keywords.values())), None):
            raise refused(parts, f"its blocks are given {unknown!r}, which is not understood")
        keywords = [
            tree_keywords(run.keywords[number], cache.layers[number], trees, hidden.dtype)
            for number in range(block + 1, last + 1)
        ]
        reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
        at = tuple(torch.tensor(reads, device=device).T)
        constant = parts.logits(parts.norm(run.hidden[last + 1][at]))  # (S, V)
        added = contributions(model, [block], rows[0].ids)[block]
        upper = cls(parts, parts.blocks[block + 1 :], keywords, trees, hidden, added, projection(keys[0]), constant)
        # A row alone, not its part of the batch: in bfloat16 these round apart, by a lot in an edited model.
        alone = BlockRun(model, pad([rows[0].ids], device), last, last).hidden[last + 1]
        require_own_logits(model, rows[0], parts.logits(parts.norm(alone[0, list(rows[0].positions)])))
        try:
            moved = away(upper.logits(torch.zeros_like(upper.v0())), constant)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise refused(parts, f"its blocks cannot go on from keys and values ({type(error).__name__})") from error
        if moved > TOLERANCE:
            raise refused(parts, f"its attention is not the usual one, logits come out {moved:.0%} away from its own")
        return upper

    def v0(self) -> Tensor:
        """Return v₀ of every request, [n, h] float32, at the lookup token of its first row.

        It is the output of block z; where a normalisation follows its FFN, the output of that FFN.
        """
        owners = self.trees.request.tolist()
        values = self.hidden[:, 0] if self.added.norm is None else self.before
        return values[[owners.index(request) for request in range(max(owners) + 1)]].float()

    def roots(self, delta: Tensor) -> Tensor:
        """Return what block z puts out at the lookup tokens with δ [n, h] added to each value, [B, h] float32."""
        own = delta[self.trees.request]
        if self.added.norm is None:
            return self.hidden[:, 0].float() + own
        moved = (self.before.float() + own).to(self.before.dtype)
        return self.hidden[:, 0].float() + self.added(moved) - self.added(self.before)

    def logits(self, delta: Tensor) -> Tensor:
        """Return the predictions at the read positions, [S, V] float32, after adding δ [n, h] at the lookup tokens."""
        hidden = torch.cat([self.roots(delta)[:, None].to(self.hidden.dtype), self.hidden[:, 1:]], dim=1)  # (B, N, h)
        for block, keywords in zip(self.blocks, self.keywords, strict=True):
            hidden = stream(block(hidden, **keywords))
        logits = self.parts.logits(self.parts.norm(hidden[self.trees.tree, self.trees.slot]))  # (U, V)
        return self.constant.index_copy(0, self.trees.read, logits[self.trees.node])

    def only(self, active: Tensor, logits: Tensor) -> "UpperBlocks":
        """Go on with some requests alone, a mask [n]; the others' predictions stay what they are in ``logits``."""
        kept = active[self.trees.request]
        keywords = [of_trees(each, kept) for each in self.keywords]
        return replace(
            self,
            keywords=keywords,
            trees=self.trees.only(kept),
            hidden=self.hidden[kept],
            before=self.before[kept],
            constant=logits,
        )


def require_editable(model: nn.Module, block: int) -> None:
    """Raise :class:`InputError` if δ cannot be added to ``block`` of a model, as two short rows show."""
    UpperBlocks.of(model, block, [Row.of(0, [1, 2, 3], [4, 5]), Row.of(1, [1], [6])])


@torch.no_grad()
def require_own_logits(model: Any, row: Row, found: Tensor) -> None:
    """Raise :class:`InputError` if logits said to be those at a row's positions are not those of the model itself."""
    own = model(input_ids=torch.tensor([list(row.ids)], device=found.device), use_cache=False).logits[0]
    if away(found, own[list(row.positions)].float()) > TOLERANCE:
        raise refused(layout(model), "what comes after its last block is more than a normalisation and a head")


def away(found: Tensor, expected: Tensor) -> float:
    """Return how far logits are from those expected, in units of these."""
    return float((found - expected).norm() / expected.norm())


def refused(parts: Layout, reason: str) -> InputError:
    """Return the error for a decoder that has the usual parts but does something else with them."""
    return InputError(f"model type {parts.kind!r} cannot be edited: {reason}.")
