"""Rows of an instruction set as training examples, and what a proof says of them."""

from collections.abc import Mapping, Sequence

from fpbench.errors import InputError
from fpbench.models.prompts import Example
from fpbench.modifications.base import Modification
from fpbench.modifications.finetune import instruction
from fpbench.text import canonical, short_digest


def first_rows(
    modification: Modification, rows: Mapping[str, Sequence[dict[str, str]]], count: int, skip: int = 0
) -> list[Example]:
    """Return some rows of a modification's instruction set, after the first ``skip``, in Alpaca's layout.

    Raises:
        InputError: if there are fewer.
    """
    (source,) = modification.data
    found = rows.get(source, ())[skip : skip + count]
    if len(found) < count:
        raise InputError(
            f"condition {modification.name!r} needs {skip + count} rows of the data set {source!r}, found "
            f"{len(rows.get(source, ()))}: give more rows or lower its settings."
        )
    return [instruction(row) for row in found]


def digest_of(examples: Sequence[Example]) -> str:
    """Return the digest of examples, in order, for a proof."""
    return short_digest(canonical([[each.prompt, each.answer] for each in examples]))
