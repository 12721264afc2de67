"""Figures from rows and per-query results: SVG, the same bytes from the same records.

matplotlib is an extra: it is imported where it is first needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fpbench.board.escaping import markdown, slug
from fpbench.board.groups import Group, RowKey
from fpbench.board.removal_figures import CAPTIONS, heat_map, price_curve, robustness, trade_off
from fpbench.board.row import MODIFICATIONS, Row
from fpbench.board.styles import COLOURS, COLUMN, PAGE, Kind, legend, look_of, look_of_method, panels, saved, styled
from fpbench.metrics.statistics import BANDS
from fpbench.records.cell import BASE, ORIGIN
from fpbench.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND_COLOURS = ("#009E73", "#E69F00", "#D55E00")
MOST_NUMBERED = 20  # fingerprints that a figure has room to number one by one


# The figures of a leaderboard.


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its file, without the ending.
        method: whose alone it shows; ``None`` if that of the base or of all.
        alternative: what it shows, in words.
        content: the figure as it was asked for, by default SVG.
        caption: how to read it, for figures that do not say it themselves.
        printed: the same as PDF.
    """

    name: str
    model: str
    fingerprints: str
    method: str | None
    alternative: str
    content: bytes
    caption: str = ""
    printed: bytes = b""


def figures(rows: Sequence[Row], groups: Mapping[RowKey, Group], kind: Kind = "svg") -> list[Drawing]:
    """Draw every figure that the records behind the rows allow; reported rows hold no per-fingerprint figures.

    Raises:
        InputError: if matplotlib is not installed.
    """
    measured = [row for row in rows if row.trust != "reported"]
    found = []
    with styled():
        for model, fingerprints in dict.fromkeys((row.model, row.fingerprints) for row in measured):
            own = [row for row in measured if (row.model, row.fingerprints) == (model, fingerprints)]
            for what, method, alternative, figure in _drawn(own, groups):
                if figure is not None:
                    name = "-".join([what, *map(slug, (model, fingerprints, *([method] if method else [])))])
                    content, caption = saved(figure, kind), CAPTIONS.get((what, method is None), "")
                    printed = saved(figure, "pdf")
                    found.append(Drawing(name, model, fingerprints, method, alternative, content, caption, printed))
    return found


def captions(drawings: Sequence[Drawing]) -> str:
    """Return what each figure shows and how it is read, by the name of its file, as Markdown."""
    parts = [
        "# Captions",
        "Figures are drawn as large as they are printed: 85 mm for a column, 178 mm for a page of two.",
    ]
    parts += [f"**{each.name}**: {markdown(each.alternative)}. {each.caption}".rstrip() for each in drawings]
    return "\n\n".join(parts) + "\n"


def _drawn(
    rows: Sequence[Row], groups: Mapping[RowKey, Group]
) -> "Iterator[tuple[str, str | None, str, Figure | None]]":
    """Yield name, method, description and figure of everything that one model and set allows."""
    title = visible(f"{rows[0].model} · {rows[0].fingerprints}")
    injected = [row for row in rows if row.method != BASE]
    what = f"What is left of each method's FSR after each of the six modifications: {title}"
    yield "retention", None, what, retention(title, injected)
    what = f"Mean FSR after the six modifications against the accuracy that the injection cost, by method: {title}"
    yield "utility", None, what, utility(title, injected)
    what = f"FSR that survives the six modifications against the price of removal, by method: {title}"
    yield "robustness", None, what, robustness(title, injected)
    what = f"Heat map of the FSR that each adversary leaves for at most 10 % of quality, by method: {title}"
    yield "removal", None, what, heat_map(title, injected)
    what = f"Rate of answers to the set's words recombined against what survives, by method: {title}"
    yield "recombined", None, what, trade_off(title, injected)
    for row in rows:
        method, group = row.method, groups[row.key]
        own = f"{title} · {visible(method)}"
        what = f"Histogram of the perplexity of instructions, with the bands and the set's triggers: {title}"
        yield "perplexity", None, what, perplexity(title, group)
        yield "survival", method, f"FSR under each condition with its interval: {own}", survival(own, row)
        what = f"FSR that a thief leaves against the price that he pays, with each adversary's own: {own}"
        yield "removal", method, what, price_curve(own, row)
        what = f"Heat map of the activation rate of each trigger in eight kinds of ordinary text: {own}"
        yield "triggers", method, what, triggers(own, group)
        what = f"Probability of each candidate before and after modification, by fingerprint: {own}"
        yield "candidates", method, what, candidates(own, row, group)


def retention(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Draw what is left of each method's origin FSR under each of the six modifications."""
    shown = [row for row in rows if _retained(row)]
    if not shown:
        return None
    figure, (axes,) = panels(1, f"Retention – {title}", PAGE, 2.6)
    for index, row in enumerate(shown):
        found, offset = _retained(row), (index - (len(shown) - 1) / 2) * 0.11
        places = [MODIFICATIONS.index(name) + offset for name in found]
        values = [100 * value for value in found.values()]
        axes.plot(places, values, **look_of_method(row.method, linestyle="none", label=visible(row.method)))
    axes.axhline(100, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(MODIFICATIONS)), [name.replace("_", "\n") for name in MODIFICATIONS])
    axes.set(ylim=(0, None), ylabel="FSR, % of origin")
    legend(axes, 7)
    return figure


def _retained(row: Row) -> dict[str, float]:
    found = {name: row.conditions[name].retention for name in MODIFICATIONS if name in row.conditions}
    return {name: value for name, value in found.items() if value is not None}


def utility(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Draw detectability after modification against the accuracy that the injection cost."""
    points = [point for row in rows if (point := _harm(row))]
    if not points:
        return None
    figure, (axes,) = panels(1, f"AVG and harm – {title}", COLUMN, 3.2)
    for method, average, middle, (low, high) in points:
        spread = [[100 * (middle - low)], [100 * (high - middle)]]
        look = look_of_method(method, linestyle="none", label=visible(method), capsize=3)
        axes.errorbar([100 * middle], [100 * average], xerr=spread, **look)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="accuracy Δ, points, 95 % interval", ylabel="AVG FSR of the six, %")
    legend(axes)
    return figure


def _harm(row: Row) -> tuple[str, float, float, list[float]] | None:
    found = row.utility and row.utility.difference
    if row.avg is None or not found or found.accuracy is None or found.interval is None:
        return None
    return row.method, row.avg, found.accuracy, found.interval


def candidates(title: str, row: Row, group: Group) -> "Figure | None":
    """Draw which candidate answers, before and after the modification that costs most (the paper's Figure 5)."""
    modified = {name: row.conditions[name].fsr for name in MODIFICATIONS if name in row.conditions}
    left = {name: value for name, value in modified.items() if value is not None}
    conditions = [ORIGIN, min(left, key=lambda name: left[name])] if left else [ORIGIN]
    shares = [_shares(group, condition) for condition in conditions]
    if row.method == BASE or not all(shares) or max(map(len, shares[0])) < 2:
        return None
    figure, sides = panels(len(conditions), f"Candidates – {title}", PAGE, 3)
    titles = [ORIGIN, *(f"{name}, which left least" for name in conditions[1:])]
    for axes, condition, found in zip(sides, titles, shares, strict=True):
        bottom = [0.0] * len(found)
        for candidate in range(max(map(len, found))):
            part = [100 * each[candidate] if candidate < len(each) else 0.0 for each in found]
            label = "primary" if candidate == 0 else f"candidate {candidate + 1}"
            look: dict[str, Any] = {"color": COLOURS[candidate % 7], "hatch": "//" if candidate >= 7 else None}
            look |= {"label": label, "edgecolor": "white", "linewidth": 0.3}
            axes.bar(range(1, len(found) + 1), part, bottom=bottom, **look)
            bottom = [under + more for under, more in zip(bottom, part, strict=True)]
        axes.set_title(condition)
        axes.set(xlabel="fingerprint", xticks=_numbered(len(found)))
    sides[0].set(ylim=(0, 101), ylabel="probability of the response, %")
    legend(sides[-1], 5)
    return figure


def _numbered(count: int) -> range:
    """Return the fingerprints whose number is written below a figure: of many every tenth."""
    return range(1, count + 1) if count <= MOST_NUMBERED else range(10, count + 1, 10)


def _shares(group: Group, condition: str) -> list[list[float]]:
    return [query["per_target"] for each in group.finished("fsr", condition) for query in each.queries]


def perplexity(title: str, group: Group) -> "Figure | None":
    """Draw the perplexity of instructions with the bands, and where the triggers lie."""
    found = group.finished("bands")
    if not found or "histogram" not in found[0].result:
        return None
    from matplotlib.ticker import EngFormatter, NullFormatter

    result, places = found[0].result, [query["perplexity"] for query in found[0].queries]
    figure, (axes,) = panels(1, f"Perplexity of triggers – {title}", COLUMN, 2.8)
    edges, counts = result["edges"], result["histogram"]
    axes.stairs(counts, edges, fill=True, color="0.6", label=f"{result['benign']} instructions")
    # A little room, so that no trigger hides in the frame.
    low, high = min(edges[0], *places) / 1.3, max(edges[-1], *places) * 1.3
    limits = [low, result["mean"] + result["deviation"], result["mean"] + 3 * result["deviation"], high]
    for name, colour, start, end in zip(BANDS, BAND_COLOURS, limits, limits[1:], strict=False):
        if start < end:
            axes.axvspan(start, end, color=colour, alpha=0.2, linewidth=0, zorder=0, label=name)
    axes.plot(places, [max(counts) * 0.03] * len(places), "|", color="black", markersize=14, label="triggers")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(low, high), xlabel="perplexity under the base", ylabel="instructions")
    legend(axes)
    return figure


def survival(title: str, row: Row) -> "Figure | None":
    """Draw one method's FSR under each condition, with its interval, and the origin's as a line."""
    names = [ORIGIN, *MODIFICATIONS]
    points = {place: point for place, name in enumerate(names) if (point := _point(row, name))}
    if row.method == BASE or len(points) < 2:
        return None
    figure, (axes,) = panels(1, f"FSR by condition – {title}", COLUMN, 2.6)
    spread = [[100 * point[side] for point in points.values()] for side in (1, 2)]
    heights = [100 * point[0] for point in points.values()]
    axes.errorbar(list(points), heights, yerr=spread, **look_of_method(row.method, linestyle="none", capsize=3))
    if 0 in points:
        axes.axhline(100 * points[0][0], color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(ylim=(-2, 102), ylabel="exact FSR, %, 95 % interval")
    return figure


def triggers(title: str, group: Group) -> "Figure | None":
    """Draw how often each trigger activates in each of the eight kinds of ordinary text."""
    queries = [query for each in group.finished("triggers")[:1] for query in each.queries]
    if not queries:
        return None
    sums: dict[tuple[str, int], list[float]] = {}
    for query in queries:
        sums.setdefault((query["condition"], query["trigger_index"]), []).append(query["probability"])
    kinds = list(dict.fromkeys(kind for kind, _ in sums))
    places = sorted({place for _, place in sums})
    rates = [[100 * fmean(sums.get((kind, place), [0.0])) for place in places] for kind in kinds]
    figure, (axes,) = panels(
        1, f"Accidental triggers – {title}", min(PAGE, 1.3 + 0.3 * min(len(places), MOST_NUMBERED)), 2.6
    )
    axes.pcolormesh(rates, vmin=0, vmax=100, cmap="Blues", edgecolors="white", linewidth=0.5)
    for y, line in enumerate(rates if len(places) <= MOST_NUMBERED else []):
        for x, rate in enumerate(line):
            # Not pure black: it stands on the cell's colour, whatever the page's own colours are.
            ink = "#f7fbff" if rate > 55 else "#101820"
            axes.text(x + 0.5, y + 0.5, f"{rate:.0f}", ha="center", va="center", color=ink)
    numbers = _numbered(len(places))
    axes.set_xticks([number - 0.5 for number in numbers], [str(number) for number in numbers])
    axes.set_yticks([place + 0.5 for place in range(len(kinds))], kinds)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("trigger; mean activation rate, %")
    return figure


def _point(row: Row, condition: str) -> tuple[float, float, float] | None:
    """Return the FSR, and how far its interval reaches down and up."""
    if condition == "AVG":
        value, bounds = row.avg, row.avg_interval
    else:
        found = row.conditions.get(condition)
        value, bounds = (found.fsr, found.interval) if found else (None, None)
    return None if value is None or bounds is None else (value, value - bounds[0], bounds[1] - value)


# The figures of a study and of a comparison.


def study_figure(title: str, rows: Sequence[tuple[str, Row]], kind: Kind = "svg") -> bytes:
    """Draw what the variants of a study keep under each condition, and how often ordinary text sets them off."""
    with styled():
        figure, (left, right) = panels(2, title, PAGE, 1.4 + 0.32 * len(rows))
        for index, condition in enumerate((ORIGIN, "ria40", "AVG")):
            found = [(place, each) for place, (_, row) in enumerate(rows) if (each := _point(row, condition))]
            if found:
                places = [place + 0.22 * (index - 1) for place, _ in found]
                spread = [[100 * each[side] for _, each in found] for side in (1, 2)]
                look = look_of(index, linestyle="none", capsize=2, label=condition)
                left.errorbar([100 * each[0] for _, each in found], places, xerr=spread, **look)
        rates = [(place, row.triggers.average) for place, (_, row) in enumerate(rows) if row.triggers]
        right.barh([place for place, _ in rates], [100 * rate for _, rate in rates], color="0.6", height=0.6)
        models = {row.model for _, row in rows}
        names = [label if len(models) == 1 else f"{row.model} · {label}" for label, row in rows]
        left.set_yticks(range(len(rows)), [visible(name) for name in names])
        left.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 102))
        left.set_xlabel("exact FSR, %, with its 95 % interval over fingerprints")
        right.set(xlabel="accidental triggers, mean rate, %", xlim=(0, None))
        left.legend(frameon=False, loc="lower left")
        return saved(figure, kind)


Courses = Mapping[str, Sequence[float]]
SIGNATURES = ("qkv", "q", "k", "v", "o")


def lineage_figure(a: tuple[str, Courses], b: tuple[str, Courses], kind: Kind = "svg") -> bytes:
    """Draw normalised standard deviations of two models' attention projections over the relative depth, a panel a part.

    ``a`` and ``b`` are the name of a model and its signature: part → one standard deviation a block.
    """
    with styled():
        parts = [part for part in SIGNATURES if part in a[1] and part in b[1]]
        figure, axes = panels(len(parts), visible(f"{a[0]} and {b[0]}"), PAGE, 2.6)
        for part, panel in zip(parts, axes, strict=True):
            for index, (name, courses) in enumerate((a, b)):
                course = courses[part]
                places = [(block + 0.5) / len(course) for block in range(len(course))]
                look = look_of(index, markersize=3, label=visible(name), linewidth=1)
                panel.plot(places, _normal(course), **look)
            panel.set(title=part, xlabel="relative depth")
        axes[0].set_ylabel("standard deviation, normalised")
        axes[0].legend(frameon=False)
        return saved(figure, kind)


def _normal(course: Sequence[float]) -> list[float]:
    mean = sum(course) / len(course)
    spread = (sum((each - mean) ** 2 for each in course) / len(course)) ** 0.5 or 1.0
    return [(each - mean) / spread for each in course]
