"""The board on a terminal: what matters first, in tables that fit it, and at most 100 columns where it is piped."""

import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from fpbench.adversaries.conditions import is_attack
from fpbench.board import columns
from fpbench.board.columns import NONE, Column, fsr_column, percent
from fpbench.board.ranks import BARS
from fpbench.board.removal import Removal
from fpbench.board.row import MODIFICATIONS, Row
from fpbench.metrics.removal import BUDGETS
from fpbench.records.cell import ORIGIN
from fpbench.text import visible

WIDTH = 100  # where the output is no terminal
NARROWEST = 60
SAID_ONCE = [columns.MODEL, columns.SET, columns.DATA, columns.TRUST]
FIRST = [columns.RANK, columns.METHOD, columns.AVERAGE, columns.PRICES[0], columns.ACCURACY, columns.PERPLEXITY]
HARM = [columns.METHOD, columns.TRIGGERS, columns.NEAR, columns.RECOMBINED, columns.BAND_COUNTS, columns.CLAIM]
LEGEND = (
    "FSR: exact fingerprint success rate, in %. AVG: its mean over the six modifications. removal price: % of the "
    "quality of long answers that a thief gives up until ownership can no longer be claimed; > 25: no dose that was "
    "tried is enough. Δ: difference from the base. [Intervals] cover 95 %. triggers: ordinary texts answered with a "
    "target, in % (and triggers of the set that any sets off); near, recombined: the same for texts of the set's make, "
    "and of its own words. claim: matches needed, and the power to get them. Equal ranks are ties. More: "
    "docs/leaderboard.md"
)


def summary(rows: Sequence[Row], width: int | None = None) -> str:
    """Write rows as they are printed; by default as wide as the terminal, or :data:`WIDTH` where there is none."""
    width = max(NARROWEST, width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH))
    parts: list[str] = []
    for place in dict.fromkeys((row.model, row.fingerprints) for row in rows):
        parts += _place([row for row in rows if (row.model, row.fingerprints) == place], width)
    parts += [_wrapped(LEGEND, width)]
    for title, lines in (
        ("Key statistics, once a model, in no method's cost", columns.statistics(rows)),
        ("Failed cells", columns.failures(rows)),
        ("Claimed and re-run", columns.checked(rows)),
        ("Unreliable", sorted({row.method: row.unreliable for row in rows if row.unreliable}.items())),
    ):
        listed = [_wrapped(visible(f"- {one}: {other}"), width, "  ") for one, other in lines]
        parts += ["\n".join([title, *listed])] if listed else []
    return "\n\n".join(parts)


def _place(rows: Sequence[Row], width: int) -> list[str]:
    """Return the tables of one model and set, with what is the same in all of its rows said above them."""
    said, varying = constants(rows)
    found = [_wrapped(visible(said), width), _table(overview(rows, varying), rows, width)]
    if out := [f"{row.method}: {row.out}" for row in rows if row.out]:
        found.append(_wrapped(f"out, without a rank: {visible('; '.join(out))}. {BARS}", width, "  "))
    found.append(f"{_wrapped(f'FSR by condition, in %{_oracle(rows)}', width)}\n{_conditions(rows, width)}")
    others = [each for each in columns.harm_columns(rows) if each not in (*columns.HARM, columns.LETTERED_ARC)]
    harm = [HARM[0], *(each for each in (*HARM[1:], *others, columns.COST) if known(each, rows))]
    if len(harm) > 1:
        found.append(f"Imperceptibility and cost\n{_table(harm, rows, width)}")
    return found


def constants(rows: Sequence[Row]) -> tuple[str, list[Column]]:
    """Return in words what is the same in all rows, and the columns of what is not."""
    constant = [each for each in SAID_ONCE if len({each.text(row) for row in rows}) == 1]
    said = " · ".join(f"{each.name} {each.text(rows[0])}" for each in constant)
    return said, [each for each in SAID_ONCE if each not in constant]


def overview(rows: Sequence[Row], varying: Sequence[Column] = ()) -> list[Column]:
    """Return the columns of the first table, at most eight: what survives, at what price, and what it cost."""
    found = [*FIRST[:2], *varying, *(each for each in FIRST[2:] if known(each, rows))]
    if columns.AVERAGE not in found and known(columns.FSR, rows):
        found.insert(2 + len(varying), columns.FSR)
    return found[:8]


def known(column: Column, rows: Sequence[Row]) -> bool:
    """Return whether any of the rows has a figure in a column; what nobody asked for has none."""
    return any(column.text(row) not in (NONE, "") for row in rows)


def _oracle(rows: Sequence[Row]) -> str:
    if not any(row.removal for row in rows):
        return ""
    oracle = any(row.removal and row.removal.thief == "oracle" for row in rows)
    who = ", who knows these very fingerprints (one seed)" if oracle else ""
    return f"; below: what a thief{who} leaves, and what he pays, in %"


def _conditions(rows: Sequence[Row], width: int) -> str:
    """Return one line a condition that was asked for, one column a method; attacks with their price, dearest last."""
    asked = {name for row in rows for name in row.conditions}
    attacks = {name: each for row in rows if row.removal for name, each in row.removal.conditions.items()}
    usual = [name for name in (ORIGIN, *MODIFICATIONS) if name in asked]
    further = sorted(name for name in asked if name not in usual and not is_attack(name))
    prices = {name: _price(name, rows) for name in attacks}
    dear = sorted(attacks, key=lambda name: (prices[name] is None, prices[name] or 0.0, name))
    lines = [["condition", *(["price"] if attacks else []), *(visible(row.method) for row in rows)]]
    for name in (*usual, *further, *dear):
        column = fsr_column(name)
        cells = [visible(column.text(row).partition(" [")[0]) for row in rows]
        price = "" if name not in attacks else percent(prices[name])
        lines.append([visible(name), *([price] if attacks else []), *cells])
    if attacks:
        for title, figure in _removal_lines(rows):
            lines.append([title, "", *(figure(row.removal) if row.removal else NONE for row in rows)])
    named, tables = 1 + bool(attacks), []
    shown = list(range(named, len(lines[0])))
    while shown:
        # As many methods as fit; the others stand in a table below.
        count = len(shown)
        while count > 1 and _width(_columns(lines, [*range(named), *shown[:count]])) > width:
            count -= 1
        tables.append(_written(_columns(lines, [*range(named), *shown[:count]]), width))
        shown = shown[count:]
    return "\n\n".join(tables)


def _columns(lines: Sequence[Sequence[str]], places: Sequence[int]) -> Table:
    table = _empty()
    for place in places:
        table.add_column(lines[0][place], justify="right" if place else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*(line[place] for place in places))
    return table


def _width(table: Table) -> int:
    return Console(file=io.StringIO(), width=10_000, markup=False, emoji=False).measure(table).maximum


def _price(name: str, rows: Sequence[Row]) -> float | None:
    """Return what a condition costs: measured on the base for all methods alike, or else what the dearest row pays."""
    found = [row.removal.conditions[name].long for row in rows if row.removal and name in row.removal.conditions]
    return max((each for each in found if each is not None), default=None)


def _removal_lines(rows: Sequence[Row]) -> list[tuple[str, Callable[[Removal], str]]]:
    budget = f"{BUDGETS[-1]:g}"

    def left(level: str) -> Callable[[Removal], str]:
        def text(found: Removal) -> str:
            thief = found.worst.get(level)
            return percent(thief.within[budget].fsr) if thief and thief.within else NONE

        return text

    lines = [(f"worst {level}, ≤ 10 % paid", left(level)) for level in ("L1", "L3")]
    return [*lines, ("removal rank", lambda found: str(found.rank or NONE))]


def _table(shown: Sequence[Column], rows: Sequence[Row], width: int) -> str:
    while len(shown) > len(FIRST[:3]) and _width(_tabulated(shown, rows)) > width:
        shown = shown[:-1]  # what matters least stands last
    return _written(_tabulated(shown, rows), width)


def _tabulated(shown: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = _empty()
    for column in shown:
        words = column in (columns.RANK, columns.METHOD, *SAID_ONCE)
        table.add_column(column.name, justify="left" if words else "right", no_wrap=column is columns.METHOD)
    for row in rows:
        table.add_row(*(visible(_short(column, row)) for column in shown))
    return table


def _short(column: Column, row: Row) -> str:
    """Return a figure as the terminal has room for: without reasons and remarks that stand below the table."""
    text = column.text(row)
    if column is columns.RANK and row.out:
        return "out"
    if column in columns.PRICES:
        return text.partition(" (")[0].removesuffix(" %")
    if column in (columns.TRIGGERS, columns.NEAR, columns.RECOMBINED):
        return text.partition(" [")[0] + ")" * (" [" in text)
    return text


def _empty() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _written(table: Table, width: int) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
