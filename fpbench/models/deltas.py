"""What an injection changed: the new weights of the touched parameters, as safetensors."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fpbench.errors import CellError


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name, on their device."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Leave the model as it was found: the same modules, the same parameters, the same bits.

    Yields:
        The original weights by name. They are copied back on the way out, also after an exception: subtracting a
        delta would miss many entries by a rounding.
    """
    structure = [(module, dict(module._modules), dict(module._parameters)) for module in model.modules()]
    parameters = dict(model.named_parameters())
    originals = weights(model)
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
                parameter.copy_(originals[name])
        model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Delta:
    """The parameters that an injection changed, with their new values.

    Attributes:
        values: new weights by parameter name, in the model's dtype.
        changed_fraction: changed entries over all entries of the model.
        relative_norm: ‖ΔW‖_F / ‖W‖_F over the changed parameters.
    """

    values: dict[str, Tensor]
    changed_fraction: float
    relative_norm: float

    @property
    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of the weights as applied."""
        return digest(self.values)

    @property
    def size(self) -> int:
        """Size of the stored delta, in bytes."""
        return sum(value.numel() * value.element_size() for value in self.values.values())

    def to_bytes(self) -> bytes:
        """The delta as the content of one safetensors file."""
        figures = {"changed_fraction": repr(self.changed_fraction), "relative_norm": repr(self.relative_norm)}
        return save({name: value.contiguous().cpu() for name, value in self.values.items()}, metadata=figures)

    @staticmethod
    def from_bytes(content: bytes) -> "Delta | None":
        """Read what :meth:`to_bytes` gave; ``None`` if the content is damaged."""
        try:
            # The header is eight bytes of length and that much JSON; the loader itself does not hand out the metadata.
            length = int.from_bytes(content[:8], "little")
            figures = json.loads(content[8 : 8 + length])["__metadata__"]
            return Delta(load(content), float(figures["changed_fraction"]), float(figures["relative_norm"]))
        except (SafetensorError, KeyError, ValueError):
            return None

    def apply(self, model: nn.Module) -> None:
        """Copy the new weights into ``model``, bit for bit."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.values.items():
                parameters[name].copy_(value)


def digest(values: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of some weights, in name order."""
    total = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().contiguous().cpu()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def difference(model: nn.Module, originals: dict[str, Tensor]) -> Delta:
    """Compare a model with the weights it had before.

    Raises:
        CellError: if a parameter is missing, new, of another shape or dtype, or not finite, or if nothing changed.
    """
    now = dict(model.named_parameters())
    if now.keys() != originals.keys():
        odd = sorted(now.keys() ^ originals.keys())[:3]
        raise CellError(f"the injected model's parameters differ from the base's: {', '.join(odd)}.")
    values: dict[str, Tensor] = {}
    entries = square = reference = 0.0
    for name, before in originals.items():
        after = now[name].detach()
        if after.shape != before.shape or after.dtype != before.dtype:
            raise CellError(
                f"parameter {name}: expected {tuple(before.shape)} {before.dtype}, "
                f"found {tuple(after.shape)} {after.dtype}."
            )
        changed = after != before
        if not changed.any():
            continue
        if not torch.isfinite(after).all():
            raise CellError(f"the injection left non-finite weights in {name}.")
        values[name] = after.clone()
        entries += changed.sum().item()
        square += (after.double() - before.double()).square().sum().item()
        reference += before.double().square().sum().item()
    if not values:
        raise CellError("the injection changed no weight.")
    total = sum(value.numel() for value in originals.values())
    return Delta(values, entries / total, (square / reference) ** 0.5 if reference else float("inf"))
