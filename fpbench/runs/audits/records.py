"""The records of an audit, and how a report takes figures from them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

from fpbench.board.document import Traced

VERIFICATION, COMPARISON, AUDIT = "verification.json", "comparison.json", "audit.json"
TRANSCRIPT, FIGURE = "transcript.jsonl", "comparison.svg"
SCHEMA = 1
# The logarithm of the largest number is 709.
LARGEST = 700.0


@dataclass(frozen=True)
class Records:
    """What a report rests on.

    Attributes:
        content: by file name, each as JSON has it.
    """

    content: Mapping[str, Any]

    def of(self, file: str) -> Callable[..., Traced]:
        """Takes a place in a record and, for a number, its format; gives what stands there."""

        def take(pointer: str, form: str = "") -> Traced:
            value = resolve(self.content[file], pointer)
            return Traced(format(value, form) if form else in_words(value), file, pointer, value)

        return take


def resolve(record: Any, pointer: str) -> Any:
    """What stands at a JSON Pointer (RFC 6901).

    Raises:
        LookupError: if there is nothing.
    """
    for step in pointer.split("/")[1:]:
        name = unescaped(step)
        record = record[int(name)] if isinstance(record, list) else record[name]
    return record


def in_words(value: Any) -> str:
    """A value of JSON as a reader wants it."""
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def escaped(name: str) -> str:
    """A name as a step of a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def unescaped(step: str) -> str:
    """The name that a step of a JSON Pointer stands for."""
    return step.replace("~1", "/").replace("~0", "~")


def as_text(record: Mapping[str, Any]) -> str:
    """A record as it is written."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def encoded(text: str) -> bytes:
    """JSON as it is written; half a character (a lone surrogate) becomes its escape, which JSON knows too."""
    return text.encode("utf-8", "backslashreplace")


def derived(verification: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that a report shows and that no other record holds, computed from the verification."""
    from fpbench.ownership.sensitivity import STEP, tolerated_chance

    evidence, level = verification["evidence"], verification["level"]
    matches = [each["target"] is not None for each in evidence]
    planned = verification["size"] - verification["uninformative"]
    if verification["budget"] is not None:
        planned = min(planned, verification["budget"])
    return {
        "asked": len(evidence),
        "planned": planned,
        "one_in": int(1 / level * (1 + 1e-9)),
        "ratio_needed": exp(min(verification["bound"], LARGEST)),
        "ratios": [exp(min(each["log_ratio"], LARGEST)) for each in evidence],
        "tolerated_chance": tolerated_chance(matches, planned, level) if verification["verdict"] == "claim" else None,
        "step": STEP,
    }


def rules() -> dict[str, Any]:
    """The fixed numbers by which the two halves are judged."""
    from fpbench.ownership import lineage
    from fpbench.ownership.claims import FLOOR
    from fpbench.ownership.sequential import CARRIED

    return {
        "least_chance": FLOOR,
        "carried": CARRIED,
        "related": lineage.RELATED,
        "unrelated": lineage.UNRELATED,
        "fewest_blocks": lineage.FEWEST_BLOCKS,
    }
