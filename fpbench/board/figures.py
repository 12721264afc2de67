"""Figures of a leaderboard, from records alone: SVG and PNG, the same bytes from the same records."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fpbench.board.cells import BANDS
from fpbench.board.records import Group, RowKey
from fpbench.board.rows import MODIFICATIONS
from fpbench.errors import InputError
from fpbench.runs.plan import BASE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
KINDS = ("svg", "png")
# Okabe and Ito's palette: told apart by every eye, and in grey by its order.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
BAND_COLOURS = ("#009E73", "#E69F00", "#D55E00")


STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fpbench",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def figures(rows: Sequence[Row], groups: dict[RowKey, Group]) -> Iterator[tuple[str, bytes]]:
    """Every figure that the records allow, as (file name, content).

    Args:
        rows: of the leaderboard; reported ones are left out, they hold no per-fingerprint figures.
        groups: the records that they were made from.

    Raises:
        InputError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib, which is not installed: pip install 'fpbench[plots]'.") from None
    matplotlib.use("agg")
    measured = [row for row in rows if row["trust"] != "reported"]
    with matplotlib.rc_context(STYLE):
        for model, fingerprints in dict.fromkeys((row["model"], row["fingerprints"]) for row in measured):
            own = [row for row in measured if (row["model"], row["fingerprints"]) == (model, fingerprints)]
            injected = [row for row in own if row["method"] != BASE]
            name = f"{model}-{fingerprints}"
            yield from _saved(f"retention-{name}", _retention(f"{model} · {fingerprints}", injected))
            yield from _saved(f"utility-{name}", _utility(f"{model} · {fingerprints}", injected))
            for row in own:
                group = groups[row["model"], row["fingerprints"], row["method"]]
                title = f"{model} · {fingerprints} · {row['method']}"
                yield from _saved(f"candidates-{name}-{row['method']}", _candidates(title, row, group))
                yield from _saved(f"perplexity-{name}", _perplexity(f"{model} · {fingerprints}", group))


def study_figure(title: str, rows: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, bytes]]:
    """What a study's variants keep under each condition, and how often ordinary text sets them off.

    Args:
        title: of the figure.
        rows: the name of each variant in the study, with its row of the leaderboard.

    Yields:
        (``svg`` or ``png``, content).
    """
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        for name, content in _saved("study", _study(title, rows)):
            yield name.rpartition(".")[2], content


def _study(title: str, rows: Sequence[tuple[str, Row]]) -> "Figure":
    figure, (left, right) = _panels(2, title, 9, 1.4 + 0.32 * len(rows))
    for index, condition in enumerate(("origin", "ria40", "AVG")):
        found = [(place, each) for place, (_, row) in enumerate(rows) if (each := _point(row, condition))]
        if found:
            places = [place + 0.22 * (index - 1) for place, _ in found]
            spread = [[100 * each[side] for _, each in found] for side in (1, 2)]
            look: dict[str, Any] = {"linestyle": "none", "capsize": 2, "label": condition} | _look(index)
            left.errorbar([100 * each[0] for _, each in found], places, xerr=spread, **look)
    rates = [(place, row["triggers"]["average"]) for place, (_, row) in enumerate(rows) if row["triggers"]]
    right.barh([place for place, _ in rates], [100 * rate for _, rate in rates], color="0.6", height=0.6)
    models = {row["model"] for _, row in rows}
    names = [label if len(models) == 1 else f"{row['model']} · {label}" for label, row in rows]
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(0, 102)
    left.set_xlabel("exact FSR, %, with its 95 % interval over fingerprints")
    right.set_xlabel("accidental triggers, mean rate, %")
    right.set_xlim(left=0)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _point(row: Row, condition: str) -> tuple[float, float, float] | None:
    """FSR and how far its interval reaches down and up."""
    if condition == "AVG":
        value, bounds = row["avg"], row["avg_interval"]
    else:
        found = row["conditions"].get(condition, {})
        value, bounds = found.get("fsr"), found.get("interval")
    return None if value is None or bounds is None else (value, value - bounds[0], bounds[1] - value)


def _saved(name: str, figure: "Figure | None") -> Iterator[tuple[str, bytes]]:
    if figure is None:
        return
    for kind in KINDS:
        content = BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=metadata)
        yield f"{name}.{kind}", content.getvalue()


def _panels(count: int, title: str, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _legend(axes: "Axes") -> None:
    """Beside the axes, where it hides no value."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _look(index: int) -> dict[str, Any]:
    """Colour and marker of one of up to 42 rows, no two alike."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _retention(title: str, rows: Sequence[Row]) -> "Figure | None":
    """What is left of each method's origin FSR under each of the six modifications."""
    shown = [row for row in rows if _retained(row)]
    if not shown:
        return None
    figure, (axes,) = _panels(1, f"Retention of FSR – {title}", 7, 3.4)
    for index, row in enumerate(shown):
        offset = (index - (len(shown) - 1) / 2) * 0.11
        found = _retained(row)
        places = [MODIFICATIONS.index(name) + offset for name in found]
        axes.plot(
            places, [100 * value for value in found.values()], linestyle="none", label=row["method"], **_look(index)
        )
    axes.axhline(100, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(MODIFICATIONS)), [name.replace("_", "\n") for name in MODIFICATIONS])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("FSR, % of origin")
    _legend(axes)
    return figure


def _retained(row: Row) -> dict[str, float]:
    found = {name: row["conditions"].get(name, {}).get("retention") for name in MODIFICATIONS}
    return {name: value for name, value in found.items() if value is not None}


def _utility(title: str, rows: Sequence[Row]) -> "Figure | None":
    """Detectability after modification against what the injection cost."""
    shown = [row for row in rows if row["avg"] is not None and (row["utility"] or {}).get("difference")]
    shown = [row for row in shown if "accuracy" in row["utility"]["difference"]]
    if not shown:
        return None
    figure, (axes,) = _panels(1, f"Harmlessness against detectability – {title}", 6.4, 3.4)
    for index, row in enumerate(shown):
        difference = row["utility"]["difference"]
        low, high = difference["interval"]
        middle = difference["accuracy"]
        spread = [[100 * (middle - low)], [100 * (high - middle)]]
        point: dict[str, Any] = {"linestyle": "none", "label": row["method"], "capsize": 3} | _look(index)
        axes.errorbar([100 * middle], [100 * row["avg"]], xerr=spread, **point)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("accuracy Δ from the base, points, with its 95 % interval")
    axes.set_ylabel("AVG FSR of the six, %")
    _legend(axes)
    return figure


def _candidates(title: str, row: Row, group: Group) -> "Figure | None":
    """Which candidate answers, before and after the modification that costs most (the paper's Figure 5)."""
    modified = {name: row["conditions"].get(name, {}).get("fsr") for name in MODIFICATIONS}
    left = {name: value for name, value in modified.items() if value is not None}
    conditions = ["origin", min(left, key=lambda name: left[name])] if left else ["origin"]
    shares = [_shares(group, condition) for condition in conditions]
    if row["method"] == BASE or not all(shares) or max(map(len, shares[0])) < 2:
        return None
    figure, panels = _panels(len(conditions), f"Candidates – {title}", 7, 3.2)
    titles = ["origin", *(f"{name}, which left least" for name in conditions[1:])]
    for axes, condition, found in zip(panels, titles, shares, strict=True):
        bottom = [0.0] * len(found)
        for candidate in range(max(map(len, found))):
            part = [100 * each[candidate] if candidate < len(each) else 0.0 for each in found]
            label = "primary" if candidate == 0 else f"candidate {candidate + 1}"
            look: dict[str, Any] = {"color": COLOURS[candidate % 7], "hatch": "//" if candidate >= 7 else None}
            axes.bar(
                range(1, len(found) + 1), part, bottom=bottom, label=label, edgecolor="white", linewidth=0.3, **look
            )
            bottom = [under + more for under, more in zip(bottom, part, strict=True)]
        axes.set_title(condition, fontsize=9)
        axes.set_xlabel("fingerprint")
        axes.set_xticks(range(1, len(found) + 1))
    panels[0].set_ylim(0, 101)
    panels[0].set_ylabel("probability of the response, %")
    _legend(panels[-1])
    return figure


def _shares(group: Group, condition: str) -> list[list[float]]:
    """For every fingerprint the probability of each of its candidates."""
    return [query["per_target"] for each in group.finished("fsr", condition) for query in each.queries]


def _perplexity(title: str, group: Group) -> "Figure | None":
    """Perplexity of instructions with the bands, and where the triggers lie."""
    found = group.finished("bands")
    if not found or "histogram" not in found[0].result:
        return None
    result, triggers = found[0].result, [query["perplexity"] for query in found[0].queries]
    figure, (axes,) = _panels(1, f"Perplexity of triggers – {title}", 6, 3)
    edges, counts = result["edges"], result["histogram"]
    axes.stairs(counts, edges, fill=True, color="0.6", label=f"{result['benign']} instructions")
    # A little room, so that no trigger hides in the frame.
    low, high = min(edges[0], *triggers) / 1.3, max(edges[-1], *triggers) * 1.3
    limits = [low, result["mean"] + result["deviation"], result["mean"] + 3 * result["deviation"], high]
    for name, colour, start, end in zip(BANDS, BAND_COLOURS, limits, limits[1:], strict=False):
        if start < end:
            axes.axvspan(start, end, color=colour, alpha=0.2, linewidth=0, zorder=0, label=name)
    axes.plot(triggers, [max(counts) * 0.03] * len(triggers), "|", color="black", markersize=14, label="triggers")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("perplexity under the unfingerprinted model")
    axes.set_ylabel("instructions")
    _legend(axes)
    return figure
