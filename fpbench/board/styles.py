"""How a figure looks and is saved: the same bytes from the same figures.

matplotlib is an extra: it is imported where it is first needed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from fpbench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "png"]
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
# Okabe and Ito's palette: told apart by every eye, and in grey by its order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"


def panels(count: int, title: str, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Return a titled figure with ``count`` axes side by side; width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def legend(axes: "Axes") -> None:
    """Name what is drawn beside the axes, where it hides no value."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def look_of(index: int, **more: Any) -> dict[str, Any]:
    """Return colour and marker of one of up to 42 rows, no two alike, and ``more``."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]} | more


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
    figure.savefig(content, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return content.getvalue()
