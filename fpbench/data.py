"""Data sources: a local file, a file bundled with the package, or a data set of the Hugging Face hub.

==================================================  ================================================
source                                              what
==================================================  ================================================
``path/rows.jsonl`` or ``path/rows.json``           one JSON object a line, or one list of objects
``path/text.txt`` (also ``.raw``, ``.tokens``)      plain text
``bundled:boolq.jsonl``                             a file of the micro world
``hub:owner/name@revision:split``                   a hub data set
``hub:owner/name/config@revision:split``            the same with a configuration, or one file of it
==================================================  ================================================

A hub data set for which the mirror has a file (:mod:`fpbench.hub.mirror`) is read from that. One that was fetched
(``fpbench fetch``) is read from the rows that were pinned then. Any other is read from the hub, as its revision is now.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.hub import download, lock
from fpbench.hub.download import HubSource
from fpbench.hub.mirror import mirrored
from fpbench.micro import DATA

Row = dict[str, Any]

_HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+|[\w./-]+\.(?:gz|jsonl|parquet)))?@([\w./-]+):([\w.-]+)")
_TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
# WikiText's articles open with a level-1 heading. Two lines of its test split only look like one; they count too, since
# the document-level data set that lm-eval scores is cut there (62 pages, not 60).
_TITLE = re.compile(r"^ = [^=\n].*[^=\n] = $", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")


def parse(source: str) -> HubSource | Path:
    """Return the hub data set, or the file that is read: the mirror's, the bundled or the named one, not looked at.

    Raises:
        InputError: if the source does not have a form shown above, or the mirror is malformed.
    """
    if source.startswith("hub:"):
        of_hub = _hub_source(source)
        return of_hub if (found := mirrored(of_hub)) is None else found.path
    if source.startswith("bundled:"):
        name = source.removeprefix("bundled:")
        if name != Path(name).name or not name:
            raise InputError(f"data source {source!r}: expected bundled:FILE, a bare file name without folders")
        return DATA / name
    return Path(source)


def _hub_source(source: str) -> HubSource:
    match = _HUB.fullmatch(source)
    if match is None:
        raise InputError(
            f"data source {source!r}: expected hub:owner/name@revision:split or "
            "hub:owner/name/config@revision:split; write it in this form or name a local file"
        )
    return HubSource(*match.groups())


def origin(source: str) -> str:
    """Return where rows come from: ``hub``, ``mirror``, ``stand-in: HOW IT DIFFERS``, ``bundled`` or ``file``.

    Raises:
        InputError: as :func:`parse`.
    """
    if source.startswith("hub:"):
        found = mirrored(_hub_source(source))
        return "hub" if found is None else f"stand-in: {found.stand_in}" if found.stand_in else "mirror"
    return "bundled" if source.startswith("bundled:") else "file"


def read_rows(source: str) -> list[Row]:
    """Read a source as rows, in file order; a document of plain text is a row with the one field ``text``.

    Raises:
        InputError: if the source is missing, empty, broken (with the line's number), of an unknown kind, or not what
            was fetched.
    """
    target = parse(source)
    if isinstance(target, HubSource):
        pin = lock.pins().get(source)
        if pin is None:
            return [dict(row) for row in download.load_rows(target, download.dataset_commit(target))]
        target = lock.rows_file(source)
        lock.verify(f"data source {source!r}", target.parent, pin)
    text = _decode(source, target)
    match target.suffix:
        case ".jsonl":
            lines = text.split("\n")  # not splitlines: JSON strings may hold U+2028 unescaped
            rows = [_row(source, line, f"line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        case ".json":
            rows = _read_json(source, text)
        case _:
            rows = [{"text": document} for document in _split_documents(text)]
    if not rows:
        raise InputError(f"data source {source!r}: expected at least one row, found none; check the file")
    return rows


def read_texts(source: str) -> list[str]:
    """Read a source as documents: the field ``text`` or ``page`` of rows, the articles or blocks of plain text.

    Plain text is split before every ``= Title =`` line if it has one (WikiText's format), else at blank lines.

    Raises:
        InputError: as :func:`read_rows`, or if a row has neither field.
    """
    rows = read_rows(source)
    field = "page" if "page" in rows[0] else "text"
    return [str(row[field]) for row in require_fields(rows, [field], source)]


def read_text(source: str) -> str:
    """Read a source as one text: a plain file as it stands, documents of rows joined by blank lines.

    Raises:
        InputError: as :func:`read_texts`.
    """
    target = parse(source)
    if isinstance(target, Path) and target.suffix in _TEXT_SUFFIXES:
        return _decode(source, target)
    return "\n\n".join(read_texts(source))


def read_lines(source: str) -> list[str]:
    """Read a source as the lines of WikiText's own data set: each with its end, and blank ones empty.

    A plain file is cut at its line ends; rows hold a line each.

    Raises:
        InputError: as :func:`read_texts`.
    """
    target = parse(source)
    if isinstance(target, Path) and target.suffix in _TEXT_SUFFIXES:
        lines = _decode(source, target).removesuffix("\n").split("\n")
        return [f"{line}\n" if line.strip() else "" for line in lines]
    return read_texts(source)


def digest(source: str) -> str:
    """Return the SHA-256 of what a source holds.

    Of a file, its bytes; of a hub data set that was fetched, its rows as JSON Lines, which every reading is compared
    with. What was not fetched has no fixed content: its name, configuration, revision and split stand for it, and once
    it is fetched it counts as another source.

    Raises:
        InputError: if the file is missing or unreadable.
    """
    target = parse(source)
    if isinstance(target, HubSource):
        pin = lock.pins().get(source)
        if pin is not None:
            return pin.files[lock.rows_file(source).name]
        content = json.dumps(astuple(target)).encode()
    else:
        content = _read_bytes(source, target)
    return hashlib.sha256(content).hexdigest()


def require_fields(rows: Iterable[Row], fields: Sequence[str], source: str) -> list[Row]:
    """Return the rows if each of them has all the fields.

    Raises:
        InputError: naming the first row (from 1) that lacks a field, and the fields that it has.
    """
    checked = list(rows)
    for number, row in enumerate(checked, 1):
        if missing := [field for field in fields if field not in row]:
            raise InputError(
                f"data source {source!r}, row {number}: expected the field {missing[0]!r}, found "
                f"{', '.join(row) or 'none'}; rename the file's fields or name another source"
            )
    return checked


def _read_bytes(source: str, path: Path) -> bytes:
    if path.suffix not in (".jsonl", ".json", *_TEXT_SUFFIXES):
        raise InputError(
            f"data source {source!r}: expected .jsonl, .json, {', '.join(_TEXT_SUFFIXES)} or a hub: or bundled: "
            f"source, found {path.suffix or 'no suffix'!r}; convert the file or correct the name"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"data source {source!r}: expected a readable file, found: {error.strerror}; correct the path"
        ) from error


def _decode(source: str, path: Path) -> str:
    try:
        return _read_bytes(source, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"data source {source!r}: expected UTF-8, found byte {error.object[error.start]:#04x} at "
            f"{error.start}; convert the file"
        ) from error


def _row(source: str, line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"data source {source!r}, {where}: expected a JSON object, found broken JSON ({error.msg}); correct it"
        ) from error
    return _object(source, row, where)


def _object(source: str, row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"data source {source!r}, {where}: expected a JSON object, found a {type(row).__name__}")
    return row


def _read_json(source: str, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"data source {source!r}, line {error.lineno}: expected a JSON list of objects, found broken JSON "
            f"({error.msg}); correct it, or name the file .jsonl if it has one object a line"
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"data source {source!r}: expected a JSON list of objects, found a {type(rows).__name__}")
    return [_object(source, row, f"row {number}") for number, row in enumerate(rows, 1)]


def _split_documents(text: str) -> list[str]:
    titles = [match.start() for match in _TITLE.finditer(text)]
    if titles:
        pieces = [text[start:end] for start, end in zip([0, *titles], [*titles, len(text)], strict=True)]
    else:
        pieces = _BLANK_LINES.split(text)
    return [piece for piece in pieces if piece.strip()]
