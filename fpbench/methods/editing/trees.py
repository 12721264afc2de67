"""Rows that share a prompt, packed: they differ only after the lookup token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpbench.methods.editing.objective import Row

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
