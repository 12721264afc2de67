"""How a figure looks and is saved: the same bytes from the same figures.

matplotlib is an extra: it is imported where it is first needed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from fpbench.errors import InputError
from fpbench.records.cell import BASE, CHECKPOINT
from fpbench.registry import METHODS
from fpbench.text import digest, writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "pdf", "png"]
# Inches of a column and of the text of a two-column page: figures are drawn as large as they are printed.
COLUMN, PAGE = 3.35, 7.0
TYPE = 8  # points, and no letter is smaller
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fpbench",
    # Text stays text: it can be read aloud and searched, and is no larger than its words.
    "svg.fonttype": "none",
    # Names are what submitters wrote, and a dollar in one is no formula.
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": TYPE,
    "axes.labelsize": TYPE,
    "axes.titlesize": TYPE,
    "xtick.labelsize": TYPE,
    "ytick.labelsize": TYPE,
    "legend.fontsize": TYPE,
    "figure.titlesize": TYPE,
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Okabe and Ito's palette: told apart by every eye, and in grey by its order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"


def panels(count: int, title: str, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Return a titled figure with ``count`` axes side by side; width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def legend(axes: "Axes", columns: int = 2) -> None:
    """Name what is drawn below the axes, where it hides no value."""
    handles, labels = axes.get_legend_handles_labels()
    figure: Any = axes.figure
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def look_of(index: int, **more: Any) -> dict[str, Any]:
    """Return colour and marker of one of up to 42 rows, no two alike, and ``more``."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]} | more


def look_of_method(method: str, **more: Any) -> dict[str, Any]:
    """Return colour and marker of a method, the same in every figure: by the registry, and of others by their name."""
    if method in (BASE, CHECKPOINT):
        return {"color": "#808080", "marker": "x"} | more
    own = METHODS.own
    index = own.index(method) if method in own else len(own) + int(digest(writable(method))[:6], 16) % 36
    return look_of(index, **more)


@contextmanager
def styled() -> Iterator[None]:
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


def saved(figure: "Figure", kind: Kind) -> bytes:
    """Return the file of a figure, which does not tell when it was drawn."""
    content = BytesIO()
    # Nothing tells when it was drawn, or by which version.
    silent = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    figure.savefig(content, format=kind, dpi=160, metadata=silent.get(kind, {"Software": None}))
    figure.set_layout_engine("none")  # it is laid out: the next kind need not be
    return content.getvalue()
