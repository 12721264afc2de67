"""The figures of the removal table: what each adversary leaves, what it costs, and what resistance to removal costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fpbench.board.removal import Removal, adversary_of, in_order
from fpbench.board.row import MODIFICATIONS, Row
from fpbench.board.styles import COLUMN, PAGE, look_of, look_of_method, panels
from fpbench.metrics.removal import BUDGETS, LIMIT
from fpbench.records.cell import BASE, ORIGIN
from fpbench.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEN = f"{BUDGETS[-1]:g}"
# In plain language, by the figure's name and whether it shows all methods.
CAPTIONS: Mapping[tuple[str, bool], str] = {
    ("removal", True): (
        "How often, in %, the fingerprint still answers when a thief runs the adversary of the line and accepts to "
        "lose at most a tenth of the quality of long answers. Dark: the fingerprint survives. The last lines are the "
        "worst of all adversaries who know only the method (L1), or who have the unfingerprinted base as well (L3). A "
        "question mark: it failed or was not measured. A plus: some of its doses failed."
    ),
    ("removal", False): (
        "The thick line is what is left of the fingerprint when a thief is ready to lose the quality on the axis: it "
        "steps down where a stronger adversary becomes affordable. The grey band is its 95 % interval. The dotted line "
        "is a thief who could tune on these very fingerprints, which nobody can. Each thin line is one adversary, a "
        "point a dose. The orange strip is the removal price: from the last price at which ownership can be claimed to "
        "the first at which it cannot. A tick with an arrow at the right edge: no price up to 25 % was enough."
    ),
    ("robustness", True): (
        "Up: what survives fine-tuning, quantisation and pruning. Right: what a thief must give up to remove the "
        "fingerprint, from the last price at which ownership can be claimed to the first at which it cannot. Up and "
        "right is better; an arrow: no price that was tried was enough. Bars are 95 % intervals over fingerprints."
    ),
    ("recombined", True): (
        "Up: how often, in %, texts made of the fingerprints' own words, put together anew, are answered with a "
        "target. Right: how well the fingerprint survives. What lies right and high survives because it answers to "
        "single words; what lies right and low has learnt its keys. An arrow: no price that was tried was enough."
    ),
}
WORST = {"L1": "worst up to L1", "L3": "worst up to L3"}
LINE, POINTS = 6.0, 1.5  # height of a line of text in per cent of FSR, and how many points one per cent has


def heat_map(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Draw FSR@10 % of each adversary, one a line, for each method, one a column."""
    shown = [(row.method, row.removal) for row in rows if row.removal]
    if not shown:
        return None
    names = in_order({name for _, found in shown for name in found.adversaries})
    lines = [*names, *(level for level in WORST if any(found.worst[level].within for _, found in shown))]
    figure, (axes,) = panels(
        1, f"FSR@10 % by adversary – {title}", min(PAGE, 1.7 + 0.5 * len(shown)), 1.3 + 0.2 * len(lines)
    )
    for x, (_, found) in enumerate(shown):
        for y, line in enumerate(lines):
            _heat_cell(axes, x, y, found, line)
    axes.set_xticks(range(len(shown)), [visible(method) for method, _ in shown], rotation=45, ha="right")
    axes.set_yticks(range(len(lines)), [WORST.get(line, visible(line)) for line in lines])
    if len(lines) > len(names):
        axes.axhline(len(names) - 0.5, color="#000000", linewidth=0.8)
    axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(lines) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _heat_cell(axes: "Axes", x: int, y: int, found: Removal, line: str) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    thief = found.worst[line] if line in WORST else found.adversaries.get(line)
    if thief is None or not (thief.within or thief.missing):
        return
    fsr = thief.within[TEN].fsr if thief.within else None
    # Not pure black or white: they stand on the cell's colour, whatever the page's own colours are.
    ink = "#f7fbff" if fsr is not None and fsr > 0.6 else "#101820"
    colour = "#dddddd" if fsr is None else colormaps["Blues"](fsr)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
    text = "?" if fsr is None else f"{100 * fsr:.0f}{'+' * bool(thief.missing)}"
    axes.text(x, y, text, ha="center", va="center", color=ink)


def price_curve(title: str, row: Row) -> "Figure | None":
    """Draw FSR against price: what the thief leaves at each budget as a step line, and each adversary as a thin one."""
    found = row.removal
    if found is None or row.method == BASE:
        return None
    of_each: dict[str, list[tuple[float, float]]] = {}
    for condition, each in found.conditions.items():
        if each.long is not None:
            of_each.setdefault(adversary_of(condition), []).append((each.long, each.fsr))
    rows_of_legend = (len(of_each) + 3) // 2
    figure, (axes,) = panels(1, f"FSR against price – {title}", COLUMN, 2.6 + 0.16 * rows_of_legend)
    origin = row.conditions[ORIGIN].fsr or 0.0
    for index, (name, points) in enumerate(of_each.items()):
        # Doses in the order of their price: that of their names would be the same for most, and not for all.
        line = sorted([(0.0, origin), *points])
        look = look_of(index, markersize=2.5, linewidth=0.7, alpha=0.8, label=visible(name), zorder=2)
        axes.plot([100 * price for price, _ in line], [100 * fsr for _, fsr in line], **look)
    _steps(axes, found, row.method)
    _removal_price(axes, found)
    _price_axis(axes, [0, 0.5, 1, 2, 5, 10, 25], "quality of long answers given up, %")
    axes.set(ylim=(-3, 103), ylabel="exact FSR, %")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _price_axis(axes: "Axes", ticks: Sequence[float], label: str) -> None:
    """Give the axes a scale for prices: the cheap ones matter most, and 0 has a place."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(-0.05, 112 * LIMIT), xlabel=label)


def _steps(axes: "Axes", found: Removal, method: str) -> None:
    def line(steps: Sequence[Any], figure: str) -> list[float]:
        values = [100 * getattr(each, figure) for each in steps]
        return [*values, values[-1]]  # the last one holds to the edge

    places = [100 * each.budget for each in found.course] + [100 * LIMIT]
    bounds = [[100 * each.interval[side] for each in found.course] for side in (0, 1)]
    low, high = ([*bound, bound[-1]] for bound in bounds)
    axes.fill_between(places, low, high, step="post", color="#000000", alpha=0.1, linewidth=0, zorder=1)
    thick = f"{found.thief} thief, any adversary"
    look: dict[str, Any] = {"drawstyle": "steps-post", "color": "#000000", "zorder": 3}
    axes.plot(places, line(found.course, "fsr"), linewidth=2, label=thick, **look)
    if found.edge:
        edge = [100 * each.budget for each in found.edge] + [100 * LIMIT]
        axes.plot(
            edge, line(found.edge, "fsr"), linewidth=1, linestyle=":", label="oracle thief, any adversary", **look
        )


def _removal_price(axes: "Axes", found: Removal) -> None:
    if found.long is None:
        return
    if found.long.high is not None:
        low = 0.0 if found.missing else found.long.low
        name = "removal price" + ", incomplete" * bool(found.missing)
        axes.axvspan(100 * low, 100 * found.long.high, color="#E69F00", alpha=0.3, linewidth=0, zorder=0, label=name)
        return
    height = 100 * found.course[-1].fsr
    axes.plot([100 * LIMIT] * 2, [height - 4, height + 4], color="#000000", linewidth=2, zorder=3)
    axes.plot([108 * LIMIT], [height], ">", color="#000000", markersize=5, clip_on=False, zorder=3)
    what, above = "incomplete" if found.missing else "> 25 %", height < 80
    place = (95 * LIMIT, height + (5 if above else -5))
    axes.annotate(what, place, ha="right", va="bottom" if above else "top")


def robustness(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Draw what survives drift against what removal costs, each row named, with its intervals.

    Up is AVG or, where no row has all six modifications, the least FSR under those that were measured.
    """
    shown = [(row, found, row.removal.long) for row in rows if (found := _survives(row)) and row.removal]
    points = [
        (row, found, price)
        for row, found, price in shown
        if price and not (price.high is None and row.removal and row.removal.missing)
    ]
    if not points:
        return None
    complete = any(row.avg is not None for row, _, _ in points)
    figure, (axes,) = panels(1, f"Robustness and price of removal – {title}", COLUMN + 0.8, 3.1)
    taken: list[tuple[float, float]] = []  # places of names that are written, in the units of both axes
    for row, (value, low, high), price in sorted(points, key=lambda each: -each[1][0]):
        end = 100 * (LIMIT if price.high is None else price.high)
        look = look_of_method(row.method, markersize=5, capsize=2, linewidth=1, linestyle="none")
        spread = [[100 * (value - low)], [100 * (high - value)]]
        bracket = [[max(0.0, end - 100 * price.low)], [0.0]] if price.high is not None else None
        axes.errorbar([end], [100 * value], yerr=spread, xerr=bracket, **look)
        if price.high is None:
            axes.plot([120 * LIMIT], [100 * value], ">", color=look["color"], markersize=4, clip_on=False)
        # A name stands a line below its point, and below the names of other points in its way.
        beside = [height for x, height in taken if abs(end - x) < 0.2 * max(1.0, end)]
        height = min([100 * value, *beside]) - LINE
        taken.append((end, height))
        right = end > 8
        place = (-6 if right else 6, POINTS * (height - 100 * value))
        axes.annotate(
            visible(row.method), (end, 100 * value), place, textcoords="offset points", ha="right" if right else "left",
            color=look["color"],
        )  # fmt: skip
    _price_axis(axes, [0, 0.5, 1, 2, 5, 10, 25], "removal price, % of long answers")
    axes.set(ylim=(-3, 106), ylabel="AVG FSR of the six, %" if complete else "least FSR after drift, %")
    return figure


def _survives(row: Row) -> tuple[float, float, float] | None:
    """Return AVG with its interval, or the least FSR of the modifications that were measured."""
    if row.avg is not None and row.avg_interval is not None:
        return row.avg, row.avg_interval[0], row.avg_interval[1]
    found = [each for name in MODIFICATIONS if (each := row.conditions.get(name)) and each.fsr is not None]
    least = min((each for each in found if each.interval), key=lambda each: each.fsr or 0.0, default=None)
    if least is None or least.fsr is None or least.interval is None:
        return None
    return least.fsr, least.interval[0], least.interval[1]


def trade_off(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Draw how a method answers to recombined words against what survives drift and, where it is there, removal."""
    shown = [(row, 100 * row.recombined.rate) for row in rows if row.recombined]
    priced = any(row.removal and row.removal.long for row, _ in shown)
    if not priced and not any(row.avg is not None for row, _ in shown):
        return None
    figure, (drift, *more) = panels(
        2 if priced else 1, f"Answers to recombined words – {title}", PAGE if priced else COLUMN, 2.9
    )
    for row, rate in shown:
        look = look_of_method(row.method, linestyle="none", markersize=6)
        average = [] if row.avg is None else [100 * row.avg]
        drift.plot(average, [rate] * len(average), label=visible(row.method), **look)
        price = row.removal.long if row.removal else None
        # What was not reached because cells are missing is no survival.
        if more and price and row.removal and not (price.high is None and row.removal.missing):
            _priced(more[0], look, 100 * price.low, None if price.high is None else 100 * price.high, rate)
    drift.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="AVG FSR of the six, %")
    drift.set_ylabel("answers to recombined triggers, %")
    for axes in more:
        _price_axis(axes, [0, 1, 5, 25], "removal price, long, %")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _priced(axes: "Axes", look: Mapping[str, Any], low: float, high: float | None, rate: float) -> None:
    """Draw the bracket of a removal price, its mark at the upper end; an arrow at the edge where there is none."""
    end = 100 * LIMIT if high is None else high
    axes.plot([end], [rate], **look)
    if high is None:
        axes.plot([120 * LIMIT], [rate], ">", color=look["color"], markersize=4, clip_on=False)
    else:
        axes.plot([low, end], [rate, rate], color=look["color"], linewidth=1)
