"""``submission.toml``: a submitter's description of a method, or of an adversary."""

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from datetime import date, datetime, time
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from fpbench.adversaries.conditions import check
from fpbench.checks import Settings, first_error
from fpbench.errors import InputError
from fpbench.methods.hyperparameters import FAMILIES
from fpbench.modifications.base import Dose
from fpbench.records.cell import ORIGIN
from fpbench.text import LARGEST_INTEGER, printable

FILE = "submission.toml"
LARGEST = 64 * 1024  # bytes
NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")
DEEPEST = 8  # levels of a value in a table of hyper-parameters
EVERY = "all"
TABLES = (EVERY, "small", *FAMILIES.values())


def clean(text: str) -> str:
    """Return a text of one line; ValueError for control characters and what turns the direction of writing."""
    for character in text:
        # Zs is the plain space and its kin; everything else of Z and C breaks lines, hides or turns text.
        if unicodedata.category(character)[0] in "CZ" and unicodedata.category(character) != "Zs":
            raise ValueError(f"a character that cannot be seen (U+{ord(character):04X})")
    if not text.strip():
        raise ValueError("an empty text")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s<>\"']+", text):
        raise ValueError("no address that begins with https://")
    return text


def _licence(text: str) -> str:
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        raise ValueError("no SPDX expression such as Apache-2.0 or MIT") from None


def _tables(found: dict[str, Any]) -> dict[str, Any]:
    for name in found:
        if name not in TABLES:
            raise ValueError(f"a table for {name!r}, which is none of {', '.join(TABLES)}")
    _check_values(found)
    return found


def _check_values(found: dict[str, Any]) -> None:
    """Refuse what JSON does not hold, which hyper-parameters travel in: dates, NaN, huge numbers, endless nesting."""
    pending: list[tuple[Any, int]] = [(found, 0)]
    while pending:
        value, level = pending.pop()
        if level > DEEPEST:
            raise ValueError(f"values more than {DEEPEST} levels deep")
        if isinstance(value, dict | list):
            pending += [(each, level + 1) for each in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, datetime | date | time):
            raise ValueError(f"the date or time {value}, which is no hyper-parameter: write it as a text")
        elif isinstance(value, float) and not isfinite(value):
            raise ValueError(f"the number {value}, which is not finite")
        elif isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
            raise ValueError("an integer beyond 64 bits")


Line = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean)]


def _condition(text: str) -> str:
    if text != ORIGIN:
        try:
            check(text)
        except InputError as error:
            raise ValueError(str(error)) from None
    return text


class Reported(Settings):
    """What a method's paper reports: in words and, where it is at hand, as a figure that ``leaderboard.csv`` names.

    Attributes:
        says: the claim, in words of one's own.
        source: where it stands, such as ``"abstract"`` or ``"table 3"``.
        differs: how their experiment differs from this benchmark's, the model aside.
        conditions: those of this benchmark that come nearest; none where there is none like it.
        model: theirs.
        metric: what the figure is, in the units of ``leaderboard.csv``: rates are fractions, ``fsr_greedy`` counts.
        value: the figure, or ``low`` and ``high`` where a range is reported.
        n: fingerprints behind it.
    """

    model_config = ConfigDict(strict=True)

    says: Line
    source: Line
    differs: Line | None = None
    conditions: Annotated[list[Annotated[Line, AfterValidator(_condition)]], Field(max_length=20)] = []
    model: Line | None = None
    metric: Literal["fsr", "fsr_greedy", "retention", "avg", "injection_seconds"] | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: Annotated[int, Field(ge=1, lt=LARGEST_INTEGER)] | None = None

    @model_validator(mode="after")
    def _is_a_figure(self) -> Self:
        """Refuse a figure of nothing, nothing of a figure, and what the metric cannot be."""
        given = [each for each in (self.value, self.low, self.high) if each is not None]
        if not (given == [self.value] or given == [self.low, self.high] or not given):
            raise ValueError("expected 'value' alone, or 'low' and 'high'")
        if bool(given) != (self.metric is not None):
            raise ValueError("expected a 'metric' with its 'value', or neither")
        if self.metric == "fsr_greedy" and self.n is None:
            raise ValueError("expected 'n' beside fsr_greedy, which is a count of fingerprints")
        most = {"injection_seconds": inf, "fsr_greedy": self.n or 0}.get(self.metric or "", 1.0)
        if given != sorted(given) or not all(isfinite(each) and 0 <= each <= most for each in given):
            raise ValueError(f"expected {self.metric} from 0 to {most:g}, low before high, found {given}")
        return self


class Summary(Settings):
    """What the comparison of all methods says of one (docs/field.md)."""

    model_config = ConfigDict(strict=True)

    changes: Annotated[Line, Field(description="which weights")]
    needs: Annotated[Line, Field(description="data, gradients, other models, besides the base")]
    targets: Annotated[Line, Field(description="how many a trigger is taught")]


Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class Manifest(Settings):
    """Author, paper and licence of a submission; unknown keys are refused."""

    model_config = ConfigDict(strict=True)

    authors: Annotated[list[Line], Field(min_length=1, max_length=100)]
    paper: Annotated[Line, AfterValidator(_address)]
    licence: Annotated[Line, AfterValidator(_licence)]
    code_version: Annotated[Line, Field(max_length=40)]
    adapted_by: Annotated[list[Line], Field(max_length=100)] = Field([], description="where these are not the authors")

    @property
    def credit(self) -> str:
        """Return the line of ``fpbench list``: the first author, and the paper."""
        others = " and others" if len(self.authors) > 1 else ""
        return f"Handed in, of {self.authors[0]}{others}: {self.paper}"


class MethodManifest(Manifest):
    """The further keys of a method."""

    method: Name
    hardware: Line
    hyperparameters: Annotated[dict[str, dict[str, Any]], AfterValidator(_tables)] = Field(
        description="by model family, as the adapter's Config takes them; those of 'all' hold for every model"
    )
    summary: Summary | None = Field(None, description="for the comparison of all methods")
    reported: Annotated[list[Reported], Field(max_length=20)] = Field([], description="what the paper reports")


class Scale(Settings):
    """The dose of an adversary, as :class:`~fpbench.modifications.base.Dose`; without ``default`` it is a number."""

    model_config = ConfigDict(strict=True)

    unit: Line
    default: int | float
    list: Annotated[Sequence[int | float], Field(min_length=1, max_length=20)]
    least: int | float = 0
    most: int | float = inf
    weaker_is_larger: bool = False
    whole: bool = False

    def as_dose(self) -> Dose:
        """Return it as conditions read it."""
        return Dose(self.unit, self.default, tuple(self.list), self.least, self.most, self.weaker_is_larger, self.whole)


class AdversaryManifest(Manifest):
    """The further keys of an adversary: what plans and boards need to know without running it."""

    adversary: Name
    level: Literal["L0", "L1", "L2", "L3", "L4"]
    parts: Annotated[list[Literal["input", "sampler"]], Field(min_length=1, max_length=2)]
    needs: Annotated[list[Literal["base", "instructions"]], Field(max_length=2)] = []
    pays: dict[Literal["inference", "data", "parameters"], Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    dose: Scale | None = None


Kind = TypeVar("Kind", bound=Manifest)


def read_manifest(folder: Path, kind: type[Kind]) -> Kind:
    """Read and check the manifest of a submission, a method or an adversary.

    Raises:
        InputError: naming the first key that is missing, unknown or malformed.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: expected at most {LARGEST // 1024} KiB, found more; shorten it.")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: `fpbench submit new NAME` writes one.") from None
    except (OSError, ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise InputError(
            f"{path} is not a readable TOML file ({str(error) or type(error).__name__}); mend it."
        ) from None
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        where, reason = first_error(error)
        reason, known = printable(reason.removeprefix("Value error, ")), ", ".join(kind.model_fields)
        raise InputError(f"{path}, key {printable(where)!r}: {reason}; every key: {known}.") from None
