"""The leaderboard as one self-contained page: a plain table that a small script lets readers sort and filter."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fpbench.board import cells, columns, details
from fpbench.board.inline import inlined
from fpbench.board.rows import MODIFICATIONS, further_conditions
from fpbench.board.text import slug
from fpbench.text import visible

if TYPE_CHECKING:
    from fpbench.board.figures import Drawing

Row = dict[str, Any]
FOLDER = Path(__file__).parent / "page"


def page(rows: Sequence[Row], drawings: Sequence["Drawing"] = ()) -> str:
    """The page.

    Args:
        rows: of the leaderboard, in its order.
        drawings: figures to show in it; without them it is complete but for these.
    """
    measured = [row for row in rows if row["trust"] != "reported"]
    reported = [row for row in rows if row["trust"] == "reported"]
    names = list(dict.fromkeys(row["method"] for row in measured))
    further = further_conditions(rows)
    tables = [columns.detectability(rows), columns.harm(rows)]
    tables += [columns.further(measured, further)] if further else []
    tables += [columns.compared(rows)] if measured and reported else []
    script = source("page.js")
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            tables=tables,
            anchors={name: anchor(name) for name in names},
            overview=_overview(drawings),
            methods=[_method(name, [row for row in measured if row["method"] == name], drawings) for name in names],
            failures=[failure for row in measured for failure in details.failures(row)],
            checked=[both for row in measured for both in cells.both_figures(row)],
            legend=columns.legend(tables),
            models=list(dict.fromkeys(row["model"] for row in rows)),
            kinds=list(dict.fromkeys(row["fingerprints"] for row in rows)),
            trusts=list(dict.fromkeys(row["trust"] for row in rows)),
            conditions=["origin", *MODIFICATIONS, *further],
            source=reported[0]["source"] if reported else None,
            style=source("page.css"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def anchor(method: str) -> str:
    """The id of a method's section."""
    return f"method-{slug(method)}"


@cache
def environment() -> Environment:
    """Everything that a template prints is escaped, and shown with its control characters."""
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )


@cache
def source(name: str) -> Markup:
    """A file of the page that is ours, and therefore not escaped."""
    return Markup("\n" + (FOLDER / name).read_text(encoding="utf-8"))


def _overview(drawings: Sequence["Drawing"]) -> list[tuple[str, str, Markup]]:
    """Figures of all methods of a model and set."""
    found = [each for each in drawings if each.method is None and not each.name.startswith("perplexity")]
    return [(each.model, each.fingerprints, _inlined(each, each.name)) for each in found]


def _method(name: str, rows: Sequence[Row], drawings: Sequence["Drawing"]) -> Row:
    """What the section of a method shows."""
    results = [details.result(row) | {"drawn": _drawn(row, drawings)} for row in rows]
    return {"name": name, "anchor": anchor(name), "unreliable": rows[0]["unreliable"], "results": results}


def _drawn(row: Row, drawings: Sequence["Drawing"]) -> list[Markup]:
    """A method's own figures: retention, triggers and the bands of its set."""
    own = [each for each in drawings if (each.model, each.fingerprints) == (row["model"], row["fingerprints"])]
    kinds = {"retention": row["method"], "triggers": row["method"], "perplexity": None}
    return [
        _inlined(each, f"{each.name}-{slug(row['method'])}")
        for kind, method in kinds.items()
        for each in own
        if each.method == method and each.name.startswith(f"{kind}-")
    ]


def _inlined(drawing: "Drawing", prefix: str) -> Markup:
    # Shapes and words alone are let through, and words are escaped.
    return Markup(inlined(drawing.files["svg"], prefix, visible(drawing.alternative)))
