"""A finished audit, read by a stranger: every number in its report is looked up again in its records."""

import json
import re
import stat
from decimal import Decimal
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fpbench.board.escaping import visible
from fpbench.cli import main
from fpbench.records.cell import PROTOCOL


def audit(suspect: str, fingerprints: str, out: Path, *more: str) -> int:
    named = ["--endpoint", suspect] if "://" in suspect else [suspect]
    return main(["audit", *named, "--fingerprints", fingerprints, "--out", str(out), *more])


def facts(out: Path) -> Any:
    return json.loads((out / "audit.json").read_text())


class Page(HTMLParser):
    """A report's page: its tags, its traced values with their numbers, and its words, those from outside left out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.traced: list[list[str]] = []
        self.references: dict[str, list[str]] = {}
        self.ours: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self._row: list[str] | None = None
        self._in_span = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag not in ("meta",):
            self._open.append(tag)
        if tag == "span" and found.get("class") == "traced":
            self._in_span = True
            self.traced.append([])
        if tag == "tr":
            self._row = self.references.setdefault(found["id"], []) if "id" in found else None

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._in_span = self._in_span and tag != "span"

    def handle_data(self, data: str) -> None:
        if {"style", "svg", "title"} & set(self._open):
            return
        self.words.append(data)
        if self._row is not None and {"td", "th"} & set(self._open):
            self._row.append(data)
        elif self._in_span:
            self.traced[-1].append(data)
        elif "bdi" not in self._open:
            self.ours.append(data)


def looked_up(out: Path, file: str, pointer: str) -> Any:
    """What stands at a JSON Pointer, by the words of RFC 6901."""
    found = json.loads((out / file).read_text(encoding="utf-8"))
    assert pointer.startswith("/")
    for step in pointer[1:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def same(shown: str, value: Any) -> bool:
    """Whether what the report shows is what the record holds, rounded to as many digits as are shown."""
    if value is None or isinstance(value, bool | str):
        return shown == {None: "none", True: "yes", False: "no"}.get(value, visible(str(value)))
    number = Decimal(shown.replace(",", ""))
    return abs(number - Decimal(value)) <= Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2


NEGATIVES = r"\b(?:not|no|none|nothing|nobody|neither|nor|never|cannot|hardly)\b"


def double_negatives(text: str) -> list[str]:
    """The clauses with more than one negative word, as in "did not refuse none of the numbers"."""
    return [clause for clause in re.split(r"[.,:;(]\s|\n", text) if len(re.findall(NEGATIVES, clause, flags=re.I)) > 1]


# Sections, papers and names that hold digits, and no result.
NO_RESULT = rf"SHA-256|arXiv \d{{4}}\.\d{{5}}|protocol {PROTOCOL}, § 3|95 %|RFC 6901"


def check_traced(out: Path) -> None:
    """Every value on the page and in the Markdown is the record's, and no other digit is there."""
    page = Page(out / "audit.html")
    assert len(page.traced) > 40
    for shown, _, marker in page.traced:
        _, file, pointer, value = page.references[f"record-{marker.strip('[]')}"]
        assert same(shown, looked_up(out, file, pointer)), (shown, file, pointer, value)
    assert not re.search(r"\d", re.sub(NO_RESULT, "", " ".join(page.ours)))
    text = (out / "audit.md").read_text(encoding="utf-8")
    body, listed = text.split("## Where every number stands")
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (.+?) \| .* \|$", listed, flags=re.M)
    places = {number: (file, re.sub(r"\\(?=[^\w\s])", "", pointer)) for number, file, pointer in rows}
    markers = re.findall(r"\\\[(\d+)\\\]", body)
    assert markers == [marker.strip("[]") for _, _, marker in page.traced] and set(markers) == places.keys()
    assert [places[number] for number in places] == [tuple(row[1:3]) for row in page.references.values()]
    for shown, number in re.findall(r"(\S+) \\\[(\d+)\\\]", body):
        value = looked_up(out, *places[number])
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert same(shown.strip("(|"), value), (shown, places[number])


def check_records(out: Path) -> None:
    """The files are those whose digests are given, and nobody else can read them."""
    content = facts(out)
    assert {path.name for path in out.iterdir()} == {*content["files"], "audit.json", "audit.md", "audit.html"}
    for name, digest in content["files"].items():
        assert sha256((out / name).read_bytes()).hexdigest() == digest
    own = sha256((out / "audit.json").read_bytes()).hexdigest()
    for report in ("audit.md", "audit.html"):
        assert own in (out / report).read_text(encoding="utf-8")
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
