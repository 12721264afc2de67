"""Figures of a leaderboard, from records alone: SVG and PNG, the same bytes from the same records."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fpbench.board import drawing
from fpbench.board.lineage import Courses, lineage
from fpbench.board.records import Group, RowKey
from fpbench.board.text import slug
from fpbench.errors import InputError
from fpbench.runs.plan import BASE
from fpbench.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
KINDS = ("svg", "png")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fpbench",
    # Text stays text: it can be read aloud and searched, and is no larger than its words.
    "svg.fonttype": "none",
    # Names are what submitters wrote, and a dollar in one is no formula.
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its files, without the ending.
        model: whose rows it shows.
        fingerprints: their set.
        method: whose alone it shows; ``None`` if that of the base or of all.
        alternative: what it shows, in words.
        files: content by kind, ``svg`` and ``png``.
    """

    name: str
    model: str
    fingerprints: str
    method: str | None
    alternative: str
    files: Mapping[str, bytes]


def figures(rows: Sequence[Row], groups: dict[RowKey, Group]) -> list[Drawing]:
    """Every figure that the records allow.

    Args:
        rows: of the leaderboard; reported ones are left out, they hold no per-fingerprint figures.
        groups: the records that they were made from.

    Raises:
        InputError: if matplotlib is not installed.
    """
    measured = [row for row in rows if row["trust"] != "reported"]
    found = []
    with _styled():
        for model, fingerprints in dict.fromkeys((row["model"], row["fingerprints"]) for row in measured):
            own = [row for row in measured if (row["model"], row["fingerprints"]) == (model, fingerprints)]
            for kind, method, alternative, figure in _drawn(own, groups):
                if figure is not None:
                    name = "-".join([kind, *map(slug, (model, fingerprints, *([method] if method else [])))])
                    found.append(Drawing(name, model, fingerprints, method, alternative, _saved(figure)))
    return found


def _drawn(rows: Sequence[Row], groups: dict[RowKey, Group]) -> "Iterator[tuple[str, str | None, str, Figure | None]]":
    """Kind, method, description and figure of everything that one model and set allows."""
    title = visible(f"{rows[0]['model']} · {rows[0]['fingerprints']}")
    injected = [row for row in rows if row["method"] != BASE]
    what = f"What is left of each method's FSR after each of the six modifications: {title}"
    yield "retention", None, what, drawing.retention(title, injected)
    what = f"Mean FSR after the six modifications against the accuracy that the injection cost, by method: {title}"
    yield "utility", None, what, drawing.utility(title, injected)
    for row in rows:
        method, group = row["method"], groups[row["model"], row["fingerprints"], row["method"]]
        own = f"{title} · {visible(method)}"
        what = f"Histogram of the perplexity of instructions, with the bands and the set's triggers: {title}"
        yield "perplexity", None, what, drawing.perplexity(title, group)
        yield "retention", method, f"FSR under each condition with its interval: {own}", drawing.survival(own, row)
        what = f"Heat map of the activation rate of each trigger in eight kinds of ordinary text: {own}"
        yield "triggers", method, what, drawing.triggers(own, group)
        what = f"Probability of each candidate before and after modification, by fingerprint: {own}"
        yield "candidates", method, what, drawing.candidates(own, row, group)


def study_figure(title: str, rows: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, bytes]]:
    """What a study's variants keep under each condition, and how often ordinary text sets them off.

    Args:
        title: of the figure.
        rows: the name of each variant in the study, with its row of the leaderboard.

    Yields:
        (``svg`` or ``png``, content).
    """
    with _styled():
        yield from _saved(drawing.study(title, rows)).items()


def lineage_figure(a: tuple[str, Courses], b: tuple[str, Courses]) -> Iterator[tuple[str, bytes]]:
    """The signatures of two models (:func:`~fpbench.board.lineage.lineage`).

    Yields:
        (``svg`` or ``png``, content).
    """
    with _styled():
        yield from _saved(lineage(a, b)).items()


@contextmanager
def _styled() -> Iterator[None]:
    """Draw without a screen and in our style.

    Raises:
        InputError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib, which is not installed: pip install 'fpbench[plots]'.") from None
    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A letter that matplotlib's own font lacks is text in the SVG all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _saved(figure: "Figure") -> dict[str, bytes]:
    files = {}
    for kind in KINDS:
        content = BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=metadata)
        files[kind] = content.getvalue()
        # Everything has found its place; looking for it again takes longer than drawing.
        figure.set_layout_engine("none")
    return files
