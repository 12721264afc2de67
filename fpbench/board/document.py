"""A report as a structure whose figures are traced to records, shown on a terminal, in Markdown or as a page."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar

from markupsafe import Markup
from tabulate import tabulate

from fpbench.board.escaping import markdown, slug
from fpbench.board.html import environment, inlined, source
from fpbench.text import visible


@dataclass(frozen=True)
class Traced:
    """A figure, or words, taken from a record.

    Attributes:
        shown: as the report shows it.
        file: name of the record.
        pointer: where it stands there, a JSON Pointer (RFC 6901).
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
    """A drawing, which stands in a file beside the report; ``alternative`` is what it shows, in words."""

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
    """A title, names and values that stand above everything, and sections."""

    title: Text
    lead: Terms
    sections: tuple[Section, ...]

    def texts(self) -> Iterator[Text]:
        """Yield every text, in the order of reading."""
        yield self.title
        for block in (self.lead, *(block for section in self.sections for block in section.blocks)):
            match block:
                case Paragraph(text):
                    yield text
                case Bullets(items):
                    yield from items
                case Terms(pairs):
                    yield from (text for _, text in pairs)
                case Table(rows=rows):
                    yield from (cell for row in rows for cell in row)

    def references(self) -> dict[tuple[str, str], Traced]:
        """Return what is traced, by file and pointer, in the order of reading; each once."""
        found: dict[tuple[str, str], Traced] = {}
        for part in (part for text in self.texts() for part in text if isinstance(part, Traced)):
            found.setdefault((part.file, part.pointer), part)
        return found


def say(sentence: str, **parts: Part | Text) -> Text:
    """Return a text from a sentence with ``{names}`` in it, and what stands for each of them."""
    found: list[Part] = []
    for literal, name, _, _ in Formatter().parse(sentence):
        if literal:
            found.append(literal)
        if name is not None:
            part = parts[name]
            found.extend(part if isinstance(part, tuple) else [part])
    return tuple(found)


def plain(text: Text) -> str:
    """Return a text without the marks of its references."""
    return "".join(map(_words, text))


def _words(part: Part) -> str:
    match part:
        case Traced(shown=shown):
            return shown
        case Quoted(words):
            return words
        case _:
            return part


# Figures taken from records. A place is the name of a record and a JSON Pointer (RFC 6901) into it, such as
# ``verification.json/evidence/0/place``.


@dataclass(frozen=True)
class Records:
    """The records that a document rests on, by file name, each as JSON has it."""

    content: Mapping[str, Any]

    def __getitem__(self, place: str) -> Any:
        """Return the value at a place; raise LookupError if there is none."""
        file, *steps = place.split("/")
        value = self.content[file]
        for name in steps:
            listed = isinstance(value, list | tuple)
            value = value[int(name) if listed else name.replace("~1", "/").replace("~0", "~")]
        return value

    def show(self, place: str, form: str = "") -> Traced:
        """Return what stands at a place, in words or, for a number, in the format ``form``."""
        value = self[place]
        file, _, pointer = place.partition("/")
        named = not form and (value is None or isinstance(value, bool))
        words = {None: "none", True: "yes", False: "no"}[value] if named else format(value, form)
        return Traced(words, file, f"/{pointer}", value)

    def say(self, sentence: str, **parts: Part | Text) -> Text:
        """Do what :func:`say` does; a name with a slash in it is a place, such as ``{audit.json/derived/asked:d}``."""
        named = [(name, form or "") for _, name, form, _ in Formatter().parse(sentence) if name]
        return say(sentence, **parts, **{name: self.show(name, form) for name, form in named if "/" in name})


def step(name: str) -> str:
    """Return a name as one step of a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")


# The ways to write: a table for the terminal, a document as Markdown, or as one self-contained page.

REFERENCES = "Where every number stands"
EXPLAINED = (
    "A number in [square brackets] in the text leads to this list: the record, the place in it as a JSON Pointer "
    "(RFC 6901), and the value as it was recorded, before rounding."
)
LONGEST = 80  # characters of a recorded text in the list


def as_terminal(table: Table) -> str:
    """Return a table for the terminal, without caption and references; nothing quoted in it acts on the terminal."""
    rows = [[visible(plain(cell)) for cell in row] for row in table.rows]
    return str(tabulate(rows, table.headers, tablefmt="github", disable_numparse=True))


def as_markdown(document: Document) -> str:
    """Return the document as Markdown; nothing quoted in it acts as markup."""
    references = document.references()
    numbers = {key: number for number, key in enumerate(references, 1)}

    def text(parts: Text) -> str:
        return "".join(part(each) for each in parts)

    def part(each: Part) -> str:
        match each:
            case Traced(shown, file, pointer):
                return f"{markdown(shown)} \\[{numbers[file, pointer]}\\]"
            case Quoted(words):
                return markdown(words)
            case _:
                return each

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def block(each: Any) -> str:
        match each:
            case Paragraph(parts):
                return text(parts)
            case Bullets(items):
                return "\n".join(f"- {text(item)}" for item in items)
            case Terms(pairs):
                return "\n".join(f"- **{name}**: {text(parts)}" for name, parts in pairs)
            case Table(caption, headers, rows):
                lines = [list(headers), ["---"] * len(headers), *([text(cell) for cell in line] for line in rows)]
                return f"*{caption}*\n\n" + "\n".join(map(row, lines))
            case Picture(file, _, alternative, caption):
                return f"![{markdown(alternative)}]({file})\n\n*{caption}*"
        raise TypeError(f"no block of a document: {each!r}")

    parts = [f"# {text(document.title)}", block(document.lead)]
    for section in document.sections:
        parts += [f"## {section.title}", *map(block, section.blocks)]
    listed = [
        row([str(number), markdown(each.file), markdown(each.pointer), markdown(recorded(each))])
        for number, each in enumerate(references.values(), 1)
    ]
    heads = [row(["number", "record", "place", "value"]), row(["---"] * 4)]
    parts += [f"## {REFERENCES}", EXPLAINED.replace("[", r"\[").replace("]", r"\]"), "\n".join(heads + listed)]
    return "\n\n".join(parts) + "\n"


def as_page(document: Document) -> str:
    """Return the document as one page that needs no network and no JavaScript; nothing quoted in it acts as markup."""
    references = document.references()
    template = environment().get_template("document.html.jinja")
    return template.render(
        document=document,
        title=plain(document.title),
        numbers={key: number for number, key in enumerate(references, 1)},
        references=[(each, recorded(each)) for each in references.values()],
        heading=REFERENCES,
        explained=EXPLAINED,
        anchor=lambda title: slug(title.lower().replace(" ", "-")),
        drawn=lambda each: Markup(inlined(each.svg, slug(each.file), visible(each.alternative))),
        style=source("page.css") + source("document.css"),
    )


def recorded(traced: Traced) -> str:
    """Return the value of a reference as its record has it; a long text is cut."""
    words = traced.value if isinstance(traced.value, str) else json.dumps(traced.value)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"
