"""The record: one measurement and everything that decided it, as it is kept on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt, TypeAdapter, ValidationError

from fpbench.checks import first_error
from fpbench.records.cell import Cell
from fpbench.text import canonical, short_digest

SCHEMA: Literal[2] = 2


@dataclass(frozen=True)
class Queries:
    """The per-query results beside a record: ``METRIC.jsonl``, one JSON object a line."""

    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True, "extra": "forbid"}

    count: Annotated[StrictInt, Field(ge=1)]
    """Number of lines."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the file."""


def cell_id(identity: dict[str, Any]) -> str:
    """Return the name of a measurement: SHA-256 over the canonical JSON of everything that decides its result."""
    return short_digest(canonical(identity))


@dataclass(frozen=True)
class Record:
    """One measurement of one checkpoint under one condition, or why it could not be made.

    The string below a field is its description in ``docs/record.schema.json``, which :func:`schema` makes.
    """

    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True, "extra": "forbid"}

    cell: Cell
    """The measurement, and the place of the record: MODEL/FINGERPRINTS/METHOD/seed-SEED/CONDITION/METRIC.json."""
    status: Literal["done", "failed"]
    """A failed cell has a reason in place of a result, and is measured again by the next run."""
    protocol: StrictInt
    """Version of the measurement protocol; a leaderboard refuses to mix them."""
    id: str | None
    """First 16 digits of the SHA-256 of the identity as canonical JSON; null where that was not known yet."""
    identity: dict[str, Any] | None = None
    """Everything that decides the result: digests of model, set and data, the method's version and hyper-parameters,
    the modification's settings, decoding, sizes and precision. Two records of one identity hold one measurement."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the record: commit and digest of fpbench's code, packages, Python, machine, profile, revision
    and commit of the model, source of the method, of a submission what it was kept from (docs/submissions.md), and
    where each of the profile's data sets was read from: the hub, a mirror, a stand-in (and how that differs), the
    bundled files or a file of the user's. Of a base's figure that asks no fingerprint and was known from another set or
    seed, ``measured_as`` is the cell that was measured. It never decides whether a cell is measured again."""
    result: dict[str, Any] = field(default_factory=dict)
    """The metric's figures; rates are fractions. Only of a finished cell."""
    proof: dict[str, Any] = field(default_factory=dict)
    """That the checkpoint is what it is called: the digest of the weights that were scored, what a modification
    changed (sparsity, bits per weight, loss curve), at origin a sketch of the update. Only of a finished cell."""
    cost: dict[str, Any] = field(default_factory=dict)
    """Seconds of the measurement and of the modification, peak memory in bytes. Only of a finished cell."""
    reason: str | None = None
    """Why there is no result, in one line. Only of a failed cell."""
    traceback: str | None = None
    """Of an error that fpbench did not foresee. Only of a failed cell."""
    queries: Queries | None = None
    """The per-query results that belong to the record, where its metric has some."""
    schema: StrictInt = SCHEMA
    """Version of this format."""
    checksum: str | None = None
    """SHA-256 of the file's text with 64 zeros in place of the checksum; null only before the record is written."""

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "Record":
        """Make a record of a file's content; what the figures in it hold is not looked at.

        Raises:
            ValueError: if it lacks what every record has, holds more, or its identity is not that of its id and cell.
        """
        try:
            record = _reader().validate_python(content)
        except ValidationError as error:
            raise ValueError("is not a record of a cell: {}: {}".format(*first_error(error))) from None
        done, identity = record.status == "done", record.identity
        if done == bool(record.reason):
            raise ValueError(
                f"is not a record of a cell: status {record.status} {'with' if done else 'without'} reason"
            )
        if done and (record.id is None or identity is None):
            raise ValueError("is not a record of a cell: a result without identity")
        if identity is not None:
            if record.id != cell_id(identity):
                raise ValueError("has an id that is not that of its identity")
            of = record.cell
            own = {"protocol": record.protocol, "seed": of.seed, "condition": of.condition, "metric": of.metric}
            if other := [name for name, value in own.items() if identity.get(name) != value]:
                raise ValueError(f"has the identity of another cell ({other[0]})")
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return the file's content: of a finished cell without reason, of a failed one without result."""
        absent = {"reason", "traceback"} if self.status == "done" else {"result", "proof", "cost"}
        absent |= {name for name in ("queries", "checksum") if getattr(self, name) is None}
        nested = {"cell": dict(vars(self.cell)), "queries": self.queries and dict(vars(self.queries))}
        return {name: value for name, value in (vars(self) | nested).items() if name not in absent}


@cache
def _reader() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def schema() -> str:
    """Return the JSON schema of :class:`Record`, the content of ``docs/record.schema.json``."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Record).json_schema()
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
