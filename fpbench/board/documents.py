"""The two ways to write a document: Markdown, and one self-contained page."""

import json
from typing import Any

from markupsafe import Markup

from fpbench.board.document import (
    Bullets,
    Document,
    Paragraph,
    Part,
    Picture,
    Quoted,
    Table,
    Terms,
    Text,
    Traced,
    plain,
)
from fpbench.board.html import environment, source
from fpbench.board.inline import inlined
from fpbench.board.text import markdown, slug
from fpbench.text import visible

REFERENCES = "Where every number stands"
EXPLAINED = (
    "A number in [square brackets] in the text leads to this list: the record, the place in it as a JSON Pointer "
    "(RFC 6901), and the value as it was recorded, before rounding."
)
LONGEST = 80  # characters of a recorded text in the list


def as_markdown(document: Document) -> str:
    """The document as Markdown; nothing quoted in it acts as markup."""
    numbers = {key: number for number, key in enumerate(document.references(), 1)}

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
        for number, each in enumerate(document.references().values(), 1)
    ]
    heads = [row(["number", "record", "place", "value"]), row(["---"] * 4)]
    parts += [f"## {REFERENCES}", EXPLAINED.replace("[", r"\[").replace("]", r"\]"), "\n".join(heads + listed)]
    return "\n\n".join(parts) + "\n"


def as_page(document: Document) -> str:
    """The document as one page that needs no network and no JavaScript; nothing quoted in it acts as markup."""
    references = document.references()
    return (
        environment()
        .get_template("document.html.jinja")
        .render(
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
    )


def recorded(traced: Traced) -> str:
    """The value of a reference as its record has it; a long text is cut."""
    words = traced.value if isinstance(traced.value, str) else json.dumps(traced.value)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"
