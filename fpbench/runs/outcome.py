"""What came of a cell, and the record that says so."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpbench.errors import FpbenchError, StorageError
from fpbench.registry import METHODS
from fpbench.runs.plan import Cell
from fpbench.runs.profile import Profile
from fpbench.runs.provenance import code_and_machine, source_of
from fpbench.runs.store import cell_id
from fpbench.text import writable


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
        return Failed(writable(reason), writable("".join(traceback.format_exception(error))))


def record_of(
    profile: Profile, cell: Cell, identity: dict[str, Any] | None, outcome: Outcome | Failed
) -> dict[str, Any]:
    """The record of a cell.

    Args:
        profile: that the cell is of.
        cell: what was measured.
        identity: everything that decides the result; ``None`` for a failure before it was known.
        outcome: what came of it.
    """
    record: dict[str, Any] = {
        "protocol": profile.protocol,
        "id": cell_id(identity) if identity else None,
        "cell": dict(vars(cell)),
        "identity": identity,
        "provenance": _provenance(profile, cell),
    }
    if isinstance(outcome, Failed):
        return record | {"status": "failed", "reason": outcome.reason, "traceback": outcome.traceback}
    return record | {"status": "done", "result": outcome.result, "proof": outcome.proof, "cost": outcome.cost}


def _provenance(profile: Profile, cell: Cell) -> dict[str, Any]:
    """Where a record comes from, with the source of its method if it has one."""
    (settings,) = (each for each in profile.models if each.label == cell.model)
    found = code_and_machine() | {"profile": profile.name, "revision": settings.revision}
    if cell.method in profile.methods:
        method = METHODS.get(profile.method_of(cell.method)[0])
        found["method_source"] = source_of(method)
        if about := getattr(method, "about", None):  # of a submission: who, which paper, which licence
            found["submission"] = dict(about)
    return found
