"""Checks as data, and what they come to: what was expected, what was found, what to do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fpbench.errors import FpbenchError

T = TypeVar("T")


@dataclass(frozen=True)
class Check(Generic[T]):
    """One thing that must hold.

    Attributes:
        name: unique in its list.
        expected: what must hold.
        remedy: what to do where it does not.
        needs: names of earlier checks without which it means nothing.
        examine: returns what was found instead, or ``None`` if it holds.
    """

    name: str
    expected: str
    remedy: str
    needs: tuple[str, ...]
    examine: Callable[[T], str | None]


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
        name: of the check.
        passed: ``None`` if it was not run, as a check that it needs did not pass.
        expected: what must hold.
        found: what was found instead; empty if it passed.
        remedy: what to do about it.
    """

    name: str
    passed: bool | None
    expected: str
    found: str
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
