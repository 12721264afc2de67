"""Checks as data and their findings: what was expected, what was found, what to do. Settings, checked when read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fpbench.errors import FpbenchError, InputError

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Check(Generic[T]):
    """One thing that must hold."""

    name: str  # unique in its list
    expected: str  # what must hold
    remedy: str  # what to do where it does not
    needs: tuple[str, ...]  # names of earlier checks without which it means nothing
    examine: Callable[[T], str | None]  # returns what was found instead, or None if it holds


@dataclass(frozen=True)
class Finding:
    """The outcome of a check."""

    name: str
    passed: bool | None  # None if it was not run because a check that it needs did not pass
    expected: str
    found: str  # what was found instead; empty if it passed
    remedy: str

    def __str__(self) -> str:
        if self.passed:
            return f"{self.name}: passed"
        if self.passed is None:
            return f"{self.name}: not run ({self.found})"
        return f"{self.name}: expected {self.expected}; found {self.found}; {self.remedy}"


class Checklist(Generic[T]):
    """Checks of one kind of subject, in the order in which they are examined."""

    def __init__(self) -> None:
        """Start empty."""
        self._checks: list[Check[T]] = []

    def __iter__(self) -> Iterator[Check[T]]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    def add(
        self, name: str, expected: str, remedy: str, needs: Sequence[str] = ()
    ) -> Callable[[Callable[[T], str | None]], Callable[[T], str | None]]:
        """Return a decorator that appends a function as a check; for the arguments see :class:`Check`."""

        def decorate(examine: Callable[[T], str | None]) -> Callable[[T], str | None]:
            self._checks.append(Check(name, expected, remedy, tuple(needs), examine))
            return examine

        return decorate

    def examine(self, subject: T) -> list[Finding]:
        """Return one finding per check, in their order; a check whose needs did not pass is not run."""
        findings: dict[str, Finding] = {}
        for each in self:
            missing = [name for name in each.needs if not findings[name].passed]
            passed, found = (None, f"it needs {missing[0]!r}") if missing else _outcome(each, subject)
            findings[each.name] = Finding(each.name, passed, each.expected, found, each.remedy)
        return list(findings.values())


def _outcome(each: Check[T], subject: T) -> tuple[bool, str]:
    try:
        found = each.examine(subject)
    except FpbenchError as error:
        found = str(error)
    return found is None, found or ""


class Settings(BaseModel):
    """Base of everything that users write: unknown keys are refused, and nothing changes once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def first_error(error: ValidationError) -> tuple[str, str]:
    """Return the first malformed key, dotted where it is nested, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def read_settings(kind: type[Model], owner: str, given: Mapping[str, Any]) -> Model:
    """Validate what a user gives for ``owner``, such as ``"method 'lora'"``.

    Raises:
        InputError: naming the first unknown or malformed key.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        # A key that may be one of several things is malformed once for each of them.
        reasons = " or ".join(dict.fromkeys(each["msg"] for each in error.errors() if each["loc"][0] == key))
        known = ", ".join(kind.model_fields) or "none"
        raise InputError(f"{owner}, key {key!r}: {reasons}; known keys: {known}.") from None
