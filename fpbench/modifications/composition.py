"""Conditions by name: one modification, or several in order, written ``A+B``. Light: nothing here loads torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.modifications.base import Modification, ModificationContext, Modified
from fpbench.registry import MODIFICATIONS, unknown

if TYPE_CHECKING:
    from torch import nn

JOINT = "+"
# A quantised model can be neither trained, pruned nor merged.
LAST = ("int8", "nf4")
# What compares with the unfingerprinted base, and therefore means nothing on the base itself.
AGAINST_BASE = ("merge", "merge_slerp", "fsft_alpaca", "fsft_math")


def parts(condition: str) -> list[str]:
    """The modifications that a condition names, in order."""
    return condition.split(JOINT)


def against_base(condition: str) -> bool:
    """Whether a condition compares a model with its unfingerprinted base."""
    return any(part in AGAINST_BASE for part in parts(condition))


def check(condition: str) -> None:
    """Refuse a composition that cannot be made.

    Raises:
        InputError: if a part is unknown, named twice, or follows a quantisation.
    """
    names = parts(condition)
    for name in names:
        if name not in MODIFICATIONS.names():
            raise unknown("condition", name, MODIFICATIONS.names())
    if len(set(names)) < len(names):
        raise InputError(f"condition {condition!r} names {max(names, key=names.count)!r} twice: name each part once.")
    for name, following in zip(names, names[1:], strict=False):
        if name in LAST:
            raise InputError(
                f"condition {condition!r} applies {following!r} to a quantised model, which can be neither trained, "
                f"pruned nor merged: put {name!r} last."
            )


def create(condition: str, settings: Mapping[str, Mapping[str, Any]]) -> Modification:
    """The modification, or composition, that a condition names.

    Args:
        condition: one name, or several joined by ``+``.
        settings: of each modification, by its name.

    Raises:
        InputError: for what :func:`check` refuses, or a malformed setting.
    """
    check(condition)
    created = [MODIFICATIONS.get(name)(**settings.get(name, {})) for name in parts(condition)]
    return created[0] if len(created) == 1 else Composition(created)


class Composition(Modification):
    """Several modifications, each applied to what the one before it left."""

    def __init__(self, modifications: list[Modification]) -> None:
        """Compose two or more modifications, in this order."""
        super().__init__()
        self.name = JOINT.join(each.name for each in modifications)
        self.parts = modifications

    @property
    def identity(self) -> dict[str, Any]:
        """Version and settings of every part, by its name."""
        return {part.name: part.identity for part in self.parts}

    def apply(self, model: "nn.Module", tokenizer: Any, context: ModificationContext) -> Modified:
        """Apply every part; the proof holds each part's proof under its name."""
        proof = {}
        for part in self.parts:
            modified = part.apply(model, tokenizer, context)
            model, proof[part.name] = modified.model, modified.proof
        return Modified(model, proof)
