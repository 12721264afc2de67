"""The record: one measurement and everything that decided it, as it is kept on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from fpbench.records.cell import Cell

SCHEMA: Literal[2] = 2


@dataclass(frozen=True)
class Queries:
    """The per-query results beside a record: ``METRIC.jsonl``, one JSON object a line."""

    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True}

    count: int
    """Number of lines."""
    sha256: str
    """Digest of the file."""


@dataclass(frozen=True)
class Record:
    """One measurement of one checkpoint under one condition, or why it could not be made.

    The string below a field is its description in ``docs/record.schema.json``, which :func:`schema` makes.
    """

    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True}

    cell: Cell
    """The measurement, and the place of the record: MODEL/FINGERPRINTS/METHOD/seed-SEED/CONDITION/METRIC.json."""
    status: Literal["done", "failed"]
    """A failed cell has a reason in place of a result, and is measured again by the next run."""
    protocol: int
    """Version of the measurement protocol; a leaderboard refuses to mix them."""
    id: str | None
    """First 16 digits of the SHA-256 of the identity as canonical JSON; null where that was not known yet."""
    identity: dict[str, Any] | None = None
    """Everything that decides the result: digests of model, set and data, the method's version and hyper-parameters,
    the modification's settings, decoding, sizes and precision. Two records of one identity hold one measurement."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the record: commit and digest of fpbench's code, packages, Python, machine, profile, revision
    and commit of the model, source of the method. It never decides whether a cell is measured again."""
    result: dict[str, Any] = field(default_factory=dict)
    """The metric's figures; rates are fractions. Only of a finished cell."""
    proof: dict[str, Any] = field(default_factory=dict)
    """That the checkpoint is what it is called: the digest of the weights that were scored, what a modification
    changed (sparsity, bits per weight, loss curve). Only of a finished cell."""
    cost: dict[str, Any] = field(default_factory=dict)
    """Seconds of the measurement and of the modification, peak memory in bytes. Only of a finished cell."""
    reason: str | None = None
    """Why there is no result, in one line. Only of a failed cell."""
    traceback: str | None = None
    """Of an error that fpbench did not foresee. Only of a failed cell."""
    queries: Queries | None = None
    """The per-query results that belong to the record, where its metric has some."""
    schema: int = SCHEMA
    """Version of this format."""
    checksum: str | None = None
    """SHA-256 of the file's text with 64 zeros in place of the checksum; null only before the record is written."""

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "Record":
        """Make a record of a file's content; what the figures in it hold is not looked at.

        Raises:
            ValueError: if it lacks what every record has.
        """
        known = {each.name: content[each.name] for each in fields(Record) if each.name in content}
        try:
            known["cell"] = Cell(**content["cell"])
            if "queries" in content:
                known["queries"] = Queries(**content["queries"])
            return Record(**known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a cell: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the file's content: of a finished cell without reason, of a failed one without result."""
        absent = {"reason", "traceback"} if self.status == "done" else {"result", "proof", "cost"}
        absent |= {name for name in ("queries", "checksum") if getattr(self, name) is None}
        nested = {"cell": dict(vars(self.cell)), "queries": self.queries and dict(vars(self.queries))}
        return {name: value for name, value in (vars(self) | nested).items() if name not in absent}


def schema() -> str:
    """Return the JSON schema of :class:`Record`, the content of ``docs/record.schema.json``."""
    from pydantic import TypeAdapter

    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Record).json_schema()
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
