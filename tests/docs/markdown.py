"""What the documents hold: tables, blocks of code, commands and links."""

import re
from pathlib import Path
from urllib.parse import unquote

from tests.conftest import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
Row = dict[str, str]


def read(name: str) -> str:
    """A document of ``docs/``."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def table(text: str, header: str) -> list[Row]:
    """The rows of the one table whose header line begins with ``header``, by column."""
    tables = [found[0] for found in re.finditer(r"(?:^\|.*\n?)+", text, flags=re.M) if found[0].startswith(header)]
    assert len(tables) == 1, f"{len(tables)} tables begin with {header!r}"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0].splitlines()]
    names, _, *rows = lines
    assert rows and all(len(row) == len(names) for row in rows), [row for row in rows if len(row) != len(names)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def names(cell: str) -> list[str]:
    """What a cell or a text holds between backticks, fenced blocks aside."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", cell, flags=re.S))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text: str) -> list[str]:
    """Lines of bash blocks that call fpbench, without comments and what a shell adds."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^|&& |/bin/)(fpbench .*)", line) for line in lines]
    return [re.split(r"\s+(?:#|&|>|\|)", match[1])[0].strip() for match in found if match]


def mentions(text: str) -> list[str]:
    """Code spans that name an fpbench command, as ``fpbench fetch PROFILE`` does."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    return [" ".join(span.split()) for span in re.findall(r"`(fpbench [^`]+)`", prose)]


def links(text: str) -> list[str]:
    """Where relative links point."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [unquote(target) for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """What can stand behind ``#`` in a link to a document: its headings, as GitHub writes them."""
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
