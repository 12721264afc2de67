"""A change of low rank, and the one way in which it is added to a weight."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """The change of a weight [h, d] as a product of rank at most r.

    Attributes:
        left: A [h, r].
        right: B [d, r].
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.left.nbytes + self.right.nbytes

    def product(self) -> Tensor:
        """ΔW = A Bᵀ [h, d] float64."""
        return self.left.double() @ self.right.double().T

    def added_to(self, weight: Tensor) -> Tensor:
        """W + A Bᵀ, computed in float64 where ``weight`` [h, d] is, and rounded once, to its dtype."""
        here = Factors(self.left.to(weight.device), self.right.to(weight.device))
        return (weight.double() + here.product()).to(weight.dtype)

    def float(self) -> "Factors":
        """The same in float32, as it is stored."""
        return Factors(self.left.float(), self.right.float())
