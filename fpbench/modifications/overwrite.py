"""Overwriting: a thief injects a set of his own over the owner's, by the same method, and claims the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationContext,
    Modified,
    is_number,
    require_effect,
)
from fpbench.modifications.finetune import relative_change
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import nn

    from fpbench.models.costs import Phase, Shape


@MODIFICATIONS.register("overwrite")
class Overwrite(Modification):
    """Injects a set of the thief's own, of the same kind and by the same method, over the first: a dispute.

    The record's FSR is the owner's; that of the thief's set, of other keys and targets, stands in the proof. Both
    claims are true, and neither says who was first.
    """

    level = "L1"
    pays = {"data": 1}
    needs = ("method",)
    trains = True  # some methods do
    dose = Dose("pairs of the thief's own", default=10, list=(10, 50), least=1)
    control = "noise"
    family = "overwritten"
    figures = {"rival_fsr": lambda value: f"the thief's FSR {100 * value:.1f} %", **Modification.figures}

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Inject in place.

        Raises:
            InputError: if the method that made the model is not known, or words for so many pairs run out.
            CellError: if the injection failed.
        """
        from fpbench.models.weights import weights

        if context.inject is None:
            raise InputError(
                f"condition {self.name!r} injects by the method that made the model, which is not known here: run it "
                "on a method of the profile."
            )
        before = weights(model)
        proof = context.inject(model, int(self.amount))
        change = relative_change(model, before)
        require_effect(self.name, change)
        return Modified(model, proof | {"pairs": int(self.amount), "relative_change": change})

    def memory(self, shape: Shape) -> Phase:
        """Count two copies of the weights; what the injection takes is the method's."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, Room(), Room(2 * shape.weights))

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that the thief's FSR is no probability, or that he injected other than the dose."""
        rate, pairs = proof.get("rival_fsr"), proof.get("pairs")
        if not (is_number(rate) and 0 <= rate <= 1):
            return f"the thief's FSR is {rate}"
        asked = cls(amount).amount
        return None if pairs == asked else f"{pairs} pairs, and not the {asked:g} of its dose"
