"""A report as a structure: what is said once is written as Markdown and as a page (:mod:`fpbench.board.documents`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar


@dataclass(frozen=True)
class Traced:
    """A figure, or words, taken from a record.

    Attributes:
        shown: as the report shows it.
        file: name of the record.
        pointer: where it stands there, a JSON Pointer (RFC 6901).
        value: what stands there.
    """

    kind: ClassVar[str] = "traced"
    shown: str
    file: str
    pointer: str
    value: Any


@dataclass(frozen=True)
class Quoted:
    """Words from outside, such as a model's name or its response: they are shown, and act as nothing else."""

    kind: ClassVar[str] = "quoted"
    words: str


Part = str | Traced | Quoted
Text = tuple[Part, ...]


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: Text


@dataclass(frozen=True)
class Bullets:
    """One thing after another."""

    kind: ClassVar[str] = "bullets"
    items: tuple[Text, ...]


@dataclass(frozen=True)
class Terms:
    """Names, and what belongs to each."""

    kind: ClassVar[str] = "terms"
    pairs: tuple[tuple[str, Text], ...]


@dataclass(frozen=True)
class Table:
    """A caption, a header a column, and as many cells a row; the first cell of a row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A drawing, which stands in a file beside the report.

    Attributes:
        file: its name.
        svg: its content.
        alternative: what it shows, in words.
        caption: what is to be seen in it.
    """

    kind: ClassVar[str] = "picture"
    file: str
    svg: bytes
    alternative: str
    caption: str


Block = Paragraph | Bullets | Terms | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A title, what matters most in a few words, and sections.

    Attributes:
        title: of the whole.
        lead: names and values that stand above everything.
        sections: in order.
    """

    title: Text
    lead: Terms
    sections: tuple[Section, ...]

    def texts(self) -> Iterator[Text]:
        """Every text, in the order of reading."""
        yield self.title
        yield from (text for _, text in self.lead.pairs)
        for section in self.sections:
            for block in section.blocks:
                yield from _texts(block)

    def references(self) -> dict[tuple[str, str], Traced]:
        """What is traced, by file and pointer, in the order of reading; each once."""
        found: dict[tuple[str, str], Traced] = {}
        for text in self.texts():
            for part in text:
                if isinstance(part, Traced):
                    found.setdefault((part.file, part.pointer), part)
        return found


def _texts(block: Block) -> Iterator[Text]:
    match block:
        case Paragraph(text):
            yield text
        case Bullets(items):
            yield from items
        case Terms(pairs):
            yield from (text for _, text in pairs)
        case Table(rows=rows):
            yield from (cell for row in rows for cell in row)


def say(sentence: str, **parts: Part | Text) -> Text:
    """A text from a sentence with ``{names}`` in it, and what stands for each of them."""
    found: list[Part] = []
    for literal, name, _, _ in Formatter().parse(sentence):
        if literal:
            found.append(literal)
        if name is not None:
            part = parts[name]
            found.extend(part if isinstance(part, tuple) else [part])
    return tuple(found)


def plain(text: Text) -> str:
    """A text without the marks of its references."""
    return "".join(map(_words, text))


def _words(part: Part) -> str:
    match part:
        case Traced(shown=shown):
            return shown
        case Quoted(words):
            return words
        case _:
            return part
