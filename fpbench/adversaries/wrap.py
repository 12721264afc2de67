"""Wrapping: every query is put into system prompts, personas, formats and other templates, as products do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fpbench.adversaries.base import Adversary
from fpbench.adversaries.wrappers import WRAPPERS
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES


@ADVERSARIES.register("wrap")
class Wrap(Adversary):
    """Puts each query into one of the first K wrappers, drawn at random: p_i is the mean over all K.

    One of them, the fourth, has the request restated and the reply planned before it is given (GRI, arXiv 2503.21805).
    """

    level: ClassVar[str] = "L0"
    dose: ClassVar[Dose | None] = Dose("wrappers", default=8, list=(1, 8, 40), most=len(WRAPPERS))

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query in each of the wrappers, in the model's own chat template where a wrapper needs one."""
        if not self.amount:
            return text
        return [wrapper.around(text, self.context.tokenizer) for wrapper in WRAPPERS[: int(self.amount)]]
