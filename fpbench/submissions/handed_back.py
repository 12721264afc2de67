"""What a child hands back, read as a stranger's: replies, and the weights that it says it changed."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fpbench.errors import CellError
from fpbench.models.factors import Factors

LARGEST_REPLY = 2**20


class Reply(BaseModel):
    """One reply."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    status: str
    answer: dict[str, Any] = {}
    reason: str = ""
    traceback: str = ""
    adapter_seconds: float


def read_reply(path: Path) -> Reply:
    """Read a reply.

    Raises:
        CellError: if it is none.
    """
    content = read_file(path, LARGEST_REPLY)
    try:
        return Reply.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CellError(f"the child process answered with something that is no reply ({first['msg']}).") from None


def read_file(path: Path, largest: int) -> bytes:
    """The content of a regular file that somebody else wrote; links are not followed, and pipes not waited for.

    Raises:
        CellError: if it is no regular file or larger than ``largest`` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CellError(f"the child process left no readable {path.name} ({error.strerror}).") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise CellError(f"the child process left a {path.name} that is no file.")
        if found.st_size > largest:
            raise CellError(f"{path.name}: expected at most {largest} bytes from the child, found {found.st_size}.")
        return file.read(largest + 1)


def read_changes(content: bytes, base: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Factors]]:
    """New weights from the bytes of a safetensors file.

    Args:
        content: of the file: a parameter under its name, or ``NAME.left`` [h, r] and ``NAME.right`` [d, r] for a
            change that is a product.
        base: the parameters that there are, with their present values.

    Returns:
        The new values of the changed parameters, and the factors of those that were handed back as such.

    Raises:
        CellError: for a parameter that the base does not have, or of another shape or dtype, or not finite.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CellError(f"the child process handed back no safetensors file ({error}).") from None
    values: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    for name, before in base.items():
        if name in tensors:
            values[name] = _alike(name, tensors.pop(name), tuple(before.shape), str(before.dtype))
        elif f"{name}.left" in tensors and f"{name}.right" in tensors and before.ndim == 2:
            left, right = tensors.pop(f"{name}.left"), tensors.pop(f"{name}.right")
            rank = left.shape[-1] if left.ndim == 2 else 0
            height, width = before.shape
            factors[name] = Factors(
                _alike(f"{name}.left", left, (height, rank), "torch.float32"),
                _alike(f"{name}.right", right, (width, rank), "torch.float32"),
            )
            values[name] = factors[name].added_to(before)
    if tensors:
        raise CellError(f"the adapter handed back {sorted(tensors)[0]}, which the base does not have.")
    for name, value in values.items():
        if not value.isfinite().all():
            raise CellError(f"the injection left non-finite weights in {name}.")
    return values, factors


def _alike(name: str, value: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    found = f"{tuple(value.shape)} {value.dtype}"
    if found != f"{shape} {dtype}":
        raise CellError(f"parameter {name}: expected {shape} {dtype}, found {found}.")
    return value
