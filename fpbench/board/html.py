"""The leaderboard as one self-contained page: a plain table that a small script lets readers sort and filter."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fpbench import __released__, __version__
from fpbench.adversaries.conditions import is_attack, level, modifications, proofs
from fpbench.board import columns
from fpbench.board.columns import FAILED, METHOD, NONE, Column, Value, percent, with_minus
from fpbench.board.escaping import slug
from fpbench.board.figures import Drawing
from fpbench.board.ranks import LEAST_ACCURACY, MOST_NEAR, MOST_PERPLEXITY, MOST_TRIGGERS
from fpbench.board.removal import Removal
from fpbench.board.row import MODIFICATIONS, Bands, Claim, Cost, Detectability, Row, Utility, further_conditions
from fpbench.board.styles import look_of_method
from fpbench.board.terminal import known
from fpbench.metrics.removal import LIMIT
from fpbench.metrics.statistics import BANDS
from fpbench.records.cell import BASE, ORIGIN, PROTOCOL
from fpbench.records.cell import Cell as RecordCell
from fpbench.text import visible

FOLDER = Path(__file__).parent / "page"


def page(rows: Sequence[Row], drawings: Sequence[Drawing] = ()) -> str:
    """Write the page of a leaderboard, rows in its order; without drawings it is complete but for these."""
    measured = [row for row in rows if row.trust != "reported"]
    tables = tables_of(rows)
    placed = [(row, _title(row)) for row in measured]
    names = list(dict.fromkeys(row.method for row in measured))
    script = source("page.js")
    template = environment().get_template("page.html.jinja")
    return template.render(
        protocol=PROTOCOL,
        version=__version__,
        released=__released__,
        paper=PAPER,
        rows=[(f"{row.model} · {row.fingerprints} · {row.method}", title) for row, title in placed],
        tables=tables,
        anchors={name: anchor(name) for name in names},
        colours={name: colour(name) for name in {row.method for row in rows}},
        overview=_overview(drawings),
        methods=[_method(name, [row for row in measured if row.method == name], drawings) for name in names],
        failures=columns.failures(measured),
        checked=columns.checked(measured),
        statistics=columns.statistics(measured),
        legend=_legend(tables),
        models=list(dict.fromkeys(row.model for row in rows)),
        kinds=list(dict.fromkeys(row.fingerprints for row in rows)),
        trusts=list(dict.fromkeys(row.trust for row in measured)),
        reported=len(measured) < len(rows),
        conditions=[ORIGIN, *MODIFICATIONS, *further_conditions(rows)],
        source=next((row.source for row in rows if row.trust == "reported"), None),
        style=source("page.css"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


# What the board's methods and conditions come from (docs/methods.md).
PAPER = {
    "title": "From Construction to Injection: Edit-Based Fingerprints for Large Language Models",
    "authors": "Y. Li, X. Yi, D. Shi, Y. Cui, G. de Melo, L. Wang",
    "year": "2026",
    "arxiv": "2509.03122",
}


def _title(row: Row) -> str:
    return f"{row.method} – {row.model}, {row.fingerprints}"


def anchor(method: str) -> str:
    """Return the id of a method's section."""
    return f"method-{slug(method)}"


@cache
def environment() -> Environment:
    """Return the templates; everything that one prints is escaped, and shown with its control characters."""
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
    """Read a file of the page that is ours, and therefore not escaped."""
    return Markup("\n" + (FOLDER / name).read_text(encoding="utf-8"))


# The tables of the page; the methods name the rows.


@dataclass(frozen=True)
class Cell:
    """One cell: its column, its figure, what stands in brackets after it, what it is sorted by, and its note."""

    column: Column
    text: str
    aside: str
    value: Value
    note: str
    heat: float | None = None  # how good the figure is, from 0 to 1, where that can be said
    best: bool = False  # of the rows of its model and set that were measured here
    answers: tuple[tuple[str, str], ...] = ()  # seed and place of the per-query results behind it


@dataclass(frozen=True)
class Table:
    """A table of the page: each row with its cells but the first, which holds the method."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    lines: list[tuple[Row, list[Cell]]]


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """Return the tables that the rows allow."""
    price = ", what a thief must give up to remove it (removal price, in % of long answers),"
    priced = any(row.removal for row in rows)
    caption = (
        f"What survives the six modifications (AVG){price if priced else ''} and what it costs the model. Ranks and "
        "bold figures are within one model and set."
    )
    first = [each for each in OVERVIEW if each in SAID or known(each, rows)]
    found = [_table("overview", "Overview", caption, first, rows)]
    caption = "FSR in % with its 95 % interval over fingerprints: exact where measured, sampled where reported."
    found += [
        _table(
            "detectability",
            "Detectability",
            caption,
            [each for each in DETECTED if each in SAID or known(each, rows)],
            rows,
        )
    ]
    caption = "Differences from the unfingerprinted base; rates in %; 95 % intervals in square brackets."
    harm = [columns.METHOD, *columns.harm_columns(rows)]
    found.append(_table("harm", "Harmlessness, imperceptibility, cost", caption, harm, rows))
    measured = [row for row in rows if row.trust != "reported"]
    if further := columns.further_columns(rows):
        caption = "Outside the six and outside AVG; exact FSR in % with its 95 % interval."
        found.append(_table("further", "Further conditions", caption, [columns.METHOD, *further], measured))
    if attacked := [row for row in measured if row.removal]:
        caption = (
            "Exact FSR in % with its 95 % interval that a thief leaves who gives up at most 10 % of the quality of "
            "long answers, and what removing the fingerprint costs him."
        )
        found.append(_table("removal", "Removal", caption, _removal(attacked), attacked))
    if 0 < len(measured) < len(rows):
        caption = (
            "The authors' sampled figures beside exact ones measured here, method by method. Only rows of one model "
            "can agree in value; across models they can agree in direction."
        )
        six = [columns.FSR, *columns.SIX, columns.AVERAGE]
        shown = [columns.METHOD, columns.TRUST, *six, columns.ACCURACY, columns.PERPLEXITY]
        order = sorted(rows, key=lambda row: (row.method, row.trust != "reported"))
        found.append(_table("compared", "Reported against reproduced", caption, shown, order))
    return found


def _removal(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of removal, prices first."""
    found = [each for each in columns.removal_columns(rows) if each not in (*columns.NAMES, *columns.PRICES)]
    return [*columns.PRICES, *found]


SAID = [columns.METHOD, columns.RANK, columns.MODEL, columns.SET, columns.TRUST]
OVERVIEW = [
    columns.METHOD, columns.AVERAGE, columns.PRICES[0], columns.RANK, columns.FSR, columns.ACCURACY, columns.PERPLEXITY,
    columns.TRIGGERS, columns.NEAR, columns.TRUST, columns.DATA,
]  # fmt: skip
DETECTED = [columns.METHOD, columns.AVERAGE, columns.FSR, *columns.SIX, columns.GREEDY]


def _table(name: str, title: str, caption: str, shown: Sequence[Column], rows: Sequence[Row]) -> Table:
    others = [column for column in shown if column is not METHOD]
    best = {column.name: _best(column, rows) for column in others}
    lines = [(row, [_cell(column, row, best[column.name]) for column in others]) for row in rows]
    return Table(name, title, caption, [METHOD, *others], lines)


def _best(column: Column, rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the best figure of each model and set, of methods that were measured here; none where all are alike."""
    if not column.better:
        return {}
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = column.value(row)
        if row.method != BASE and row.trust == "re-run" and isinstance(value, int | float):
            found.setdefault((row.model, row.fingerprints), []).append(value)
    best = max if column.better > 0 else min
    return {place: best(values) for place, values in found.items() if min(values) < max(values)}


# What counts as worst: the bars of harmlessness (protocol §8), and no FSR.
WORST = {"accuracy Δ": LEAST_ACCURACY, "perplexity Δ": MOST_PERPLEXITY, "triggers": MOST_TRIGGERS, "near": MOST_NEAR}


def _heat(column: Column, value: Value) -> float | None:
    if not column.better or not isinstance(value, int | float):
        return None
    if column in columns.PRICES:
        return min(1.0, value / LIMIT)
    if (worst := WORST.get(column.name)) is not None:
        return round(min(1.0, max(0.0, 1 - value / worst)), 3)
    return round(min(1.0, max(0.0, value)), 3)


def _answers(column: Column, row: Row) -> tuple[tuple[str, str], ...]:
    """Return the files with the per-query results of an FSR beside the page, by seed."""
    if column.condition is None or row.trust not in ("re-run", "re-scored"):
        return ()
    cells = [each for path in row.cells if (each := RecordCell.at(path))]
    own = [each for each in cells if (each.condition, each.metric) == (column.condition, "fsr")]
    return tuple((str(each.seed), quote(f"records/{each.path}.jsonl")) for each in own)


def _cell(column: Column, row: Row, best: Mapping[tuple[str, str], float]) -> Cell:
    text, aside = (column.brief or column.text)(row), ""
    if not column.submitted:
        text = with_minus(text)
        # An interval or a count stands in brackets after its figure.
        if found := re.fullmatch(r"(.+?) ([\[(].*)", text):
            text, aside = found.groups()
    value = column.value(row)
    leads = value is not None and row.method != BASE and best.get((row.model, row.fingerprints)) == value
    return Cell(column, text, aside, value, column.note(row), _heat(column, value), leads, _answers(column, row))


def _legend(tables: Sequence[Table]) -> list[Column]:
    """Return every column once; conditions need no note, and that of trust is longer."""
    found = {each.name: each for table in tables for each in table.columns if each.condition in (None, ORIGIN)}
    return [each for each in found.values() if each is not columns.TRUST]


# Figures: those of all methods stand beside the first table, a method's own in its section.


# The table that a figure of all methods stands below; the first one where nothing is said.
BELOW = {"robustness": "overview", "removal": "removal", "recombined": "harm"}


def _overview(drawings: Sequence[Drawing]) -> dict[str, list[tuple[str, str, Markup, str]]]:
    """Return the figures of all methods by the table that they stand below, each with its model, set and caption."""
    found: dict[str, list[tuple[str, str, Markup, str]]] = {}
    for each in drawings:
        kind = each.name.partition("-")[0]
        if each.method is None and kind != "perplexity":
            shown = (each.model, each.fingerprints, _inlined(each, each.name), each.caption)
            found.setdefault(BELOW.get(kind, "detectability"), []).append(shown)
    return found


def _drawn(row: Row, drawings: Sequence[Drawing]) -> list[tuple[Markup, str]]:
    """Return the figures of a method's section, each with its caption."""
    own = [each for each in drawings if (each.model, each.fingerprints) == (row.model, row.fingerprints)]
    kinds = {"survival": row.method, "removal": row.method, "triggers": row.method, "perplexity": None}
    return [
        (_inlined(each, f"{each.name}-{slug(row.method)}"), each.caption)
        for kind, method in kinds.items()
        for each in own
        if each.method == method and each.name.startswith(f"{kind}-")
    ]


def colour(method: str) -> str:
    """Return the colour that a method has in every figure; black is the page's ink, as in figures."""
    return COLOURS.get(found := str(look_of_method(method)["color"]), found)


def _inlined(drawing: Drawing, prefix: str) -> Markup:
    # Shapes and words alone are let through, and words are escaped.
    return Markup(inlined(drawing.content, prefix, visible(drawing.alternative)))


# The section of a method: the figures behind the tables, as text.

Pairs = list[tuple[str, str]]
PEOPLE = {"method by": "authors", "adapted by": "adapted_by"}


def _method(name: str, rows: Sequence[Row], drawings: Sequence[Drawing]) -> dict[str, Any]:
    results = [_result(row) | {"drawn": _drawn(row, drawings), "said": _said(row)} for row in rows]
    return {"name": name, "anchor": anchor(name), "unreliable": rows[0].unreliable, "results": results}


def _said(row: Row) -> str:
    """Return the figures that a folded section shows."""
    shown = [(each.name, each.text(row)) for each in (columns.AVERAGE, columns.PRICES[0], columns.FSR)]
    found = [f"{name} {text}" for name, text in shown if text != NONE]
    return with_minus(" · ".join(found + [f"out: {row.out}"] * bool(row.out)))


def _result(row: Row) -> dict[str, Any]:
    asked = row.removal is not None and any(each.tasks is not None for each in row.removal.conditions.values())
    unattacked = [item for item in row.conditions.items() if not is_attack(item[0])]
    origin_first = sorted(unattacked, key=lambda item: (item[0] != ORIGIN, item[0]))
    return {
        "row": row,
        "folder": quote(f"records/{row.model}/{row.fingerprints}/{row.method}/") if row.trust != "claimed" else None,
        "cost": row.cost and _cost(row.cost),
        "bands": row.bands and _bands(row.bands),
        "claim": row.claim and _claim(row.claim),
        "conditions": [[name, *_condition(name, found)] for name, found in origin_first],
        "attacks": _attacks(row.removal, asked) if row.removal else [],
        "asked_tasks": asked,
        "triggers": _triggers(row),
        "tasks": _tasks(row.utility),
        "provenance": [_provenance(each) for each in row.provenance],
    }


def _condition(name: str, found: Detectability) -> list[str]:
    if found.interval is None:
        return [FAILED, NONE, NONE, NONE, NONE, NONE, found.reason or NONE]
    return [
        percent(found.fsr),
        " to ".join(percent(bound) for bound in found.interval),
        f"{found.greedy}/{found.n}",
        percent(found.retention),
        percent(found.primary),
        f"{found.error_bound:.0e}" if found.error_bound else "0",
        _proven(name, found),
    ]


def _proven(condition: str, found: Detectability) -> str:
    """Return what proves a modification, with the base's same figures behind it, and that it had no effect."""
    own, base = (
        dict.fromkeys(_proof(condition, each) for each in side or () if each)
        for side in (found.proof, found.base_proof)
    )
    parts = [f"no effect ({found.no_effect})"] * bool(found.no_effect) + list(own)
    return "; ".join(parts + [f"base: {each}" for each in base]) or NONE


def _attacks(removal: Removal, asked_tasks: bool) -> list[list[str]]:
    """Return what every adversary does at every dose: FSR, and its prices with their intervals over items."""
    return [
        [
            name,
            level(name),
            _between(found.fsr, found.interval),
            _between(found.long, found.long_interval),
            _between(found.short, found.short_interval),
            *([_between(found.tasks, found.tasks_interval)] if asked_tasks else []),
        ]
        for name, found in removal.conditions.items()
    ]


def _between(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None or bounds is None:
        return NONE
    return with_minus(f"{percent(value)} ({' to '.join(percent(bound) for bound in bounds)})")


def _proof(condition: str, proof: Mapping[str, Any]) -> str:
    """Return the figures that prove a modification; those of a composition part by part, each with its name."""
    written = {
        name: ", ".join(write(own[figure]) for figure, write in modifications(name)[0].figures.items() if figure in own)
        for name, own in proofs(condition, proof).items()
    }
    return "; ".join(text if name == condition else f"{name}: {text}" for name, text in written.items())


def _triggers(row: Row) -> list[list[str]]:
    kinds = row.triggers.conditions if row.triggers else {}
    lines = [
        [name, percent(each["rate"], 2), percent(each["own"], 2), f"{each['greedy']}/{each['n']}"]
        for name, each in sorted(kinds.items())
    ]
    for name, found in (("near", row.near), ("recombined", row.recombined)):
        if found:
            lines.append([name, percent(found.rate, 2), NONE, f"{found.greedy}/{found.n}"])
    return lines


def _tasks(utility: Utility | None) -> list[list[str]]:
    if utility is None or utility.tasks is None:
        return []
    differences = utility.difference and utility.difference.tasks or {}
    lines = []
    for name, task in sorted(utility.tasks.items()):
        points, p_value = NONE, NONE
        if difference := differences.get(name):
            points, p_value = with_minus(percent(difference["difference"], 1, "+")), f"{difference['p_value']:.3f}"
        lines.append([name, percent(task["accuracy"]), points, p_value, str(task["n"])])
    return lines


def _cost(cost: Cost) -> Pairs:
    return [
        ("injection", f"{cost.seconds:.1f} s"),
        ("peak memory", f"{cost.peak_memory / 2**20:.0f} MiB"),
        ("parameters changed", f"{percent(cost.fraction, 2)} %"),
        ("‖ΔW‖/‖W‖", f"{cost.relative_norm:.4f}"),
        ("stored delta", f"{cost.bytes / 2**10:.0f} KiB"),
    ]


def _bands(bands: Bands) -> Pairs:
    return [
        *((name, f"{bands.counts[name]} triggers") for name in BANDS),
        ("mean of the triggers", f"{bands.trigger_mean:,.0f}"),
        ("mean of instructions", f"{bands.mean:,.0f}"),
        ("ROC-AUC of a filter", f"{bands.auc:.3f}"),
    ]


def _claim(claim: Claim) -> Pairs:
    needed = "cannot be had" if claim.threshold is None else f"{claim.threshold} of {claim.n}"
    return [
        (f"matches for {claim.level:g}", needed),
        ("median p-value", f"{claim.p_value:.1e}"),
        ("power", f"{percent(claim.power)} %"),
    ]


def _provenance(source: Mapping[str, Any]) -> Pairs:
    git, machine = source.get("git") or {}, source.get("machine") or {}
    packages, about = sorted((source.get("packages") or {}).items()), source.get("submission") or {}
    commit = git.get("commit") and git["commit"][:12] + (" with changes" if git.get("dirty") else "")
    where = [machine.get("processor"), machine.get("gpu"), machine.get("system")]
    found = [
        ("records", str(source["records"])),
        ("profile", source.get("profile")),
        ("model commit", source.get("commit") or source.get("revision")),
        ("checkpoint", "; ".join(source.get("checkpoint") or ())),
        ("fpbench commit", commit),
        ("fpbench source", source.get("source")),
        ("method source", source.get("method_source")),
        ("machine", ", ".join(str(each) for each in where if each)),
        ("cores, threads", f"{machine['cores']}, {machine['threads']}" if "threads" in machine else None),
        ("memory", f"{machine['memory_gb']} GiB" if "memory_gb" in machine else None),
        ("Python", source.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages if version)),
        *((name, ", ".join(map(str, about.get(key) or ()))) for name, key in PEOPLE.items()),
        *((name, about.get(name)) for name in ("paper", "licence")),
    ]
    return [(name, str(value)) for name, value in found if value]


# A figure inside the page: only shapes and words of the SVG are let through, in the page's own colours.

ELEMENTS = {"svg", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan"}
ATTRIBUTES = {"d", "x", "y", "width", "height", "transform", "viewBox", "style", "clip-path"}
# Ink follows the page's, paper is the page's.
COLOURS = {"fill: #ffffff": "fill: none", "#000000": "currentColor", "#cccccc": "var(--line)"}


def inlined(svg: bytes, prefix: str, alternative: str) -> str:
    """Return an ``svg`` element for the page from a file that matplotlib wrote.

    Its ids begin with ``prefix``, which is unique in the page; ``alternative`` is what it shows, in words.
    """
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", svg.decode()))
    found = _allowed(ElementTree.fromstring(svg), prefix, used)
    if found is None:
        raise ValueError("expected an svg element")
    for name in ("width", "height"):
        found.attrib.pop(name, None)
    found.attrib |= {"role": "img", "aria-label": alternative}
    return ElementTree.tostring(found, encoding="unicode", short_empty_elements=False)


def _allowed(element: ElementTree.Element, prefix: str, used: set[str]) -> ElementTree.Element | None:
    """Copy what is allowed; return ``None`` if the element itself is not."""
    name = element.tag.rpartition("}")[2]
    if name not in ELEMENTS:
        return None
    kept = {}
    for attribute, value in element.attrib.items():
        attribute = attribute.rpartition("}")[2]
        if attribute == "id" and value in used:
            kept["id"] = f"{prefix}-{value}"
        elif attribute == "href" and value.startswith("#"):
            kept["href"] = f"#{prefix}-{value[1:]}"
        elif attribute in ATTRIBUTES:
            kept[attribute] = _ours(value, prefix)
    copy = ElementTree.Element(name, kept)
    copy.text = element.text if name in ("text", "tspan") else None
    for child in element:
        if (part := _allowed(child, prefix, used)) is not None:
            copy.append(part)
    return copy


def _ours(value: str, prefix: str) -> str:
    """Give a style or a shape the page's colours and typeface, and its references the page's ids."""
    for theirs, ours in COLOURS.items():
        value = value.replace(theirs, ours)
    value = re.sub(r"font-family:[^;]*;?", "", value).replace("url(#", f"url(#{prefix}-")
    return " ".join(value.split())
