"""The figure of a comparison: the signatures of two models, block by block."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Courses = Mapping[str, Sequence[float]]


def lineage_figure(a: tuple[str, Courses], b: tuple[str, Courses]) -> Iterator[tuple[str, bytes]]:
    """Normalised standard deviations of the attention projections over the relative depth, a panel a kind.

    Args:
        a: name of a model, and its signature: kind → one standard deviation a block.
        b: likewise.

    Yields:
        (``svg`` or ``png``, content).
    """
    import matplotlib

    matplotlib.use("agg")
    from fpbench.board.figures import COLOURS, MARKERS, STYLE, _panels, _saved

    kinds = [kind for kind in ("qkv", "q", "k", "v", "o") if kind in a[1] and kind in b[1]]
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(kinds), f"{a[0]} and {b[0]}", 2.4 * len(kinds) + 1, 2.8)
        for kind, panel in zip(kinds, panels, strict=True):
            for index, (name, courses) in enumerate((a, b)):
                course = courses[kind]
                places = [(block + 0.5) / len(course) for block in range(len(course))]
                look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 3}
                panel.plot(places, _normal(course), label=name, linewidth=1, **look)
            panel.set_title(kind)
            panel.set_xlabel("relative depth")
        panels[0].set_ylabel("standard deviation, normalised")
        panels[0].legend(frameon=False, fontsize=8)
        for name, content in _saved("comparison", figure):
            yield name.rpartition(".")[2], content


def _normal(course: Sequence[float]) -> list[float]:
    mean = sum(course) / len(course)
    spread = (sum((each - mean) ** 2 for each in course) / len(course)) ** 0.5 or 1.0
    return [(each - mean) / spread for each in course]
