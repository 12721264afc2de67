"""``submission.toml``: a submitter's description of a method."""

import re
import tomllib
import unicodedata
from datetime import date, datetime, time
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from fpbench.checks import Settings, first_error
from fpbench.errors import InputError
from fpbench.methods.hyperparameters import FAMILIES
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


class Manifest(Settings):
    """Author, paper, licence and hyper-parameters of a method; unknown keys are refused."""

    model_config = ConfigDict(strict=True)

    method: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    authors: Annotated[list[Line], Field(min_length=1, max_length=100)]
    paper: Annotated[Line, AfterValidator(_address)]
    licence: Annotated[Line, AfterValidator(_licence)]
    code_version: Annotated[Line, Field(max_length=40)]
    hardware: Line
    adapted_by: Annotated[list[Line], Field(max_length=100)] = Field([], description="where these are not the authors")
    hyperparameters: Annotated[dict[str, dict[str, Any]], AfterValidator(_tables)] = Field(
        description="by model family, as the adapter's Config takes them; those of 'all' hold for every model"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a submission.

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
        return Manifest.model_validate(table)
    except ValidationError as error:
        where, reason = first_error(error)
        reason, known = printable(reason.removeprefix("Value error, ")), ", ".join(Manifest.model_fields)
        raise InputError(f"{path}, key {printable(where)!r}: {reason}; every key: {known}.") from None
