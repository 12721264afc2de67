"""Decoding at another temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fpbench.adversaries.base import Adversary
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor


@ADVERSARIES.register("decode")
class Decode(Adversary):
    """Samples at temperature T in place of the protocol's T₀, with its top-k and top-p.

    A sampler comes before the temperature, so logits are multiplied by T₀/T; T₀ itself does nothing. Gates of the parts
    that follow in a condition see the changed logits: name ``decode`` last.
    """

    level = "L0"
    dose: ClassVar[Dose | None] = Dose("temperature", default=1.5, list=(0.2, 1.0, 1.5, 2.0), least=0.01)

    def sample(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Scale logits [n, V]."""
        return logits * (self.context.decoding.temperature / self.amount)
