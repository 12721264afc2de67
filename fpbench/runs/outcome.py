"""What a measurement came to: figures, or why there are none."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpbench.errors import FpbenchError, StorageError


@dataclass(frozen=True)
class Outcome:
    """A finished measurement."""

    result: Mapping[str, Any]
    queries: list[dict[str, Any]]
    cost: Mapping[str, Any]
    proof: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A measurement that could not be made, and why."""

    reason: str
    traceback: str | None

    @staticmethod
    def of(error: Exception) -> "Failed":
        """The reason in one line; a traceback only for errors that fpbench did not foresee."""
        if isinstance(error, StorageError):
            raise error
        if isinstance(error, FpbenchError):
            return Failed(str(error), None)
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return Failed(reason, "".join(traceback.format_exception(error)))
