"""The change of an injection: new weights or exact low-rank factors, as safetensors, restored bit for bit."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fpbench.errors import CellError


@dataclass(frozen=True)
class Factors:
    """The change A Bᵀ of a weight [h, d], of rank at most r: ``left`` is A [h, r], ``right`` B [d, r]."""

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Return the bytes of both."""
        return self.left.nbytes + self.right.nbytes

    def product(self) -> Tensor:
        """Return ΔW = A Bᵀ [h, d] in float64."""
        return self.left.double() @ self.right.double().T

    def added_to(self, weight: Tensor) -> Tensor:
        """Return W + A Bᵀ, computed in float64 on the device of ``weight`` [h, d] and rounded once, to its dtype."""
        here = Factors(self.left.to(weight.device), self.right.to(weight.device))
        return (weight.double() + here.product()).to(weight.dtype)

    def float(self) -> "Factors":
        """Return the same in float32, as it is stored."""
        return Factors(self.left.float(), self.right.float())


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy all parameters, by name, to main memory: a card that holds a model seldom has room for it twice."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def preserved(model: nn.Module, known: dict[str, Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """Restore a model on the way out, also after an exception: the same modules, the same parameters, the same bits.

    Yields the original weights by name, ``known`` if these :func:`weights` were copied before. They are copied back:
    subtracting a delta would miss many entries by a rounding.
    """
    structure = [(module, dict(module._modules), dict(module._parameters)) for module in model.modules()]
    parameters = dict(model.named_parameters())
    originals = weights(model) if known is None else known
    try:
        yield originals
    finally:
        for module, children, own in structure:
            module._modules.clear()
            module._modules.update(children)
            module._parameters.clear()
            module._parameters.update(own)
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != originals[name].shape:  # given back, as quantisation does
                    parameter.data = torch.empty_like(originals[name], device=parameter.device)
                parameter.copy_(originals[name])
        model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Delta:
    """The parameters that an injection changed, with their new values."""

    values: dict[str, Tensor]  # new weights by parameter name, in the model's dtype
    changed_fraction: float  # changed entries over all entries of the model
    relative_norm: float  # ‖ΔW‖_F / ‖W‖_F over the changed parameters
    # of those parameters whose new value is the old one plus a product, bit for bit; these are stored in place of the
    # values
    factors: dict[str, Factors] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return the SHA-256 over names, dtypes, shapes and bytes of the weights as applied."""
        return digest(self.values)

    @property
    def size(self) -> int:
        """Return the size of the stored delta, in bytes."""
        return sum(tensor.nbytes for tensor in self._stored().values())

    @property
    def dense_size(self) -> int:
        """Return the size of all new weights, in bytes."""
        return sum(value.nbytes for value in self.values.values())

    @property
    def rank(self) -> int:
        """Return the largest rank of a change that is stored as factors; 0 if there is none."""
        return max((factors.left.shape[1] for factors in self.factors.values()), default=0)

    def _stored(self) -> dict[str, Tensor]:
        """Return tensors by their name in the file: of a parameter both factors where there are some, else values."""
        dense = {name: value for name, value in self.values.items() if name not in self.factors}
        left = {f"{name}.left": factors.left for name, factors in self.factors.items()}
        right = {f"{name}.right": factors.right for name, factors in self.factors.items()}
        return dense | left | right

    def to_bytes(self) -> bytes:
        """Return the delta as the content of one safetensors file."""
        figures = {
            "changed_fraction": repr(self.changed_fraction),
            "relative_norm": repr(self.relative_norm),
            "factors": json.dumps(sorted(self.factors)),
        }
        return save({name: tensor.contiguous().cpu() for name, tensor in self._stored().items()}, metadata=figures)

    @staticmethod
    def from_bytes(content: bytes, originals: Mapping[str, Tensor]) -> "Delta | None":
        """Read what :meth:`to_bytes` gave, adding stored factors to the base's ``originals``; ``None`` if damaged.

        Raises:
            CellError: if a parameter that is stored as factors is not among ``originals``.
        """
        try:
            # The header is eight bytes of length and that much JSON; the loader itself does not hand out the metadata.
            length = int.from_bytes(content[:8], "little")
            figures = json.loads(content[8 : 8 + length])["__metadata__"]
            values = load(content)
            names = json.loads(figures["factors"])
            factors = {name: Factors(values.pop(f"{name}.left"), values.pop(f"{name}.right")) for name in names}
            fraction, norm = float(figures["changed_fraction"]), float(figures["relative_norm"])
        except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        if missing := sorted(factors.keys() - originals.keys()):
            raise CellError(f"{missing[0]} is stored as a change of the base's weights: these are needed to read it.")
        try:
            values |= {name: each.added_to(originals[name]) for name, each in factors.items()}
        except RuntimeError:  # shapes that do not fit
            return None
        return Delta(values, fraction, norm, factors)

    def apply(self, model: nn.Module) -> None:
        """Copy the new weights into ``model``, bit for bit."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.values.items():
                parameters[name].copy_(value)


def digest(values: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of some weights, in name order."""
    total = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().contiguous().cpu()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def state_digest(model: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers of a model."""
    return digest(dict(model.named_parameters()) | dict(model.named_buffers()))


def difference(model: nn.Module, originals: dict[str, Tensor], claims: Mapping[str, Factors]) -> Delta:
    """Compare a model with the weights it had before, by name.

    ``claims`` are factors that the change of some parameters is said to be. A claim that does not give the new weights
    bit for bit, or takes more room than they do, is dropped.

    Raises:
        CellError: if a parameter is missing, new, of another shape or dtype, or not finite, or if nothing changed.
    """
    now = dict(model.named_parameters())
    if now.keys() != originals.keys():
        odd = sorted(now.keys() ^ originals.keys())[:3]
        raise CellError(f"the injected model's parameters differ from the base's: {', '.join(odd)}.")
    values: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    entries = square = reference = 0.0
    for name, original in originals.items():
        after = now[name].detach()
        before = original.to(after.device)
        if after.shape != before.shape or after.dtype != before.dtype:
            expected, found = (f"{tuple(each.shape)} {each.dtype}" for each in (before, after))
            raise CellError(f"parameter {name}: expected {expected}, found {found}.")
        changed = after != before
        if not changed.any():
            continue
        if not torch.isfinite(after).all():
            raise CellError(f"the injection left non-finite weights in {name}.")
        values[name] = after.to("cpu", copy=True)
        claim = claims.get(name)
        if claim and claim.size < after.nbytes and torch.equal(claim.added_to(before), after):
            factors[name] = claim
        entries += changed.sum().item()
        square += (after.double() - before.double()).square().sum().item()
        reference += before.double().square().sum().item()
    if not values:
        raise CellError("the injection changed no weight.")
    total = sum(value.numel() for value in originals.values())
    return Delta(values, entries / total, (square / reference) ** 0.5 if reference else float("inf"), factors)
