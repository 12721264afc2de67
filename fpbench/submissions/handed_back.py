"""What a child hands back, read as a stranger's: replies, and the weights that it says it changed."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fpbench.errors import CellError
from fpbench.models.factors import Factors

LARGEST_REPLY = 2**20


Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Told(BaseModel):
    """What a child says: of these types, or it counts for nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Reply(Told):
    """One reply."""

    status: str
    answer: dict[str, Any] = {}
    reason: str = ""
    traceback: str = ""
    adapter_seconds: Figure


class Introduction(Told):
    """The names that an adapter registers, its version, and what its Config has against hyper-parameters, by family."""

    names: list[str]
    version: str | None = None
    refused: dict[str, str] = {}


class Spent(Told):
    """What an injection took, as the child measured it."""

    seconds: dict[str, Figure]
    peak_memory: Annotated[int, Field(ge=0)]


Kind = TypeVar("Kind", bound=Told)


def understood(kind: type[Kind], told: bytes | dict[str, Any]) -> Kind:
    """What a child said, if it is of that kind.

    Raises:
        CellError: if it is not.
    """
    try:
        return kind.model_validate_json(told) if isinstance(told, bytes) else kind.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = kind.__name__.lower()
        raise CellError(f"the child process answered with something that is no {what} ({first['msg']}).") from None


def read_reply(path: Path) -> Reply:
    """Read a reply.

    Raises:
        CellError: if it is none.
    """
    return understood(Reply, read_file(path, LARGEST_REPLY))


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
