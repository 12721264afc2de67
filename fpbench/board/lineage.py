"""The figure of a comparison: the signatures of two models, block by block."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fpbench.board.drawing import COLOURS, MARKERS, panels
from fpbench.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Courses = Mapping[str, Sequence[float]]
KINDS = ("qkv", "q", "k", "v", "o")


def lineage(a: tuple[str, Courses], b: tuple[str, Courses]) -> "Figure":
    """Normalised standard deviations of the attention projections over the relative depth, a panel a kind.

    Args:
        a: name of a model, and its signature: kind → one standard deviation a block.
        b: likewise.
    """
    kinds = [kind for kind in KINDS if kind in a[1] and kind in b[1]]
    figure, axes = panels(len(kinds), visible(f"{a[0]} and {b[0]}"), 2.4 * len(kinds) + 1, 2.8)
    for kind, panel in zip(kinds, axes, strict=True):
        for index, (name, courses) in enumerate((a, b)):
            course = courses[kind]
            places = [(block + 0.5) / len(course) for block in range(len(course))]
            look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 3}
            panel.plot(places, _normal(course), label=visible(name), linewidth=1, **look)
        panel.set_title(kind)
        panel.set_xlabel("relative depth")
    axes[0].set_ylabel("standard deviation, normalised")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _normal(course: Sequence[float]) -> list[float]:
    mean = sum(course) / len(course)
    spread = (sum((each - mean) ** 2 for each in course) / len(course)) ** 0.5 or 1.0
    return [(each - mean) / spread for each in course]
