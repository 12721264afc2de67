"""All methods beside each other: the tables of ``docs/field.md``, made from records, manifests and the reported rows.

``python -m fpbench.submissions.field``, in a checkout, makes them anew.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fpbench.board import columns
from fpbench.board.columns import NONE, interval, percent
from fpbench.board.escaping import markdown
from fpbench.board.groups import Group, RowKey, group_records
from fpbench.board.long import Figure, figures_of
from fpbench.board.removal import WORST, attacks, cheapest
from fpbench.board.reported import reported_rows
from fpbench.board.results import results
from fpbench.board.row import Row
from fpbench.board.rows import rows_from_records
from fpbench.errors import InputError
from fpbench.metrics.statistics import clopper_pearson
from fpbench.records.cell import BASE, ORIGIN
from fpbench.records.store import write_text
from fpbench.registry import METHODS
from fpbench.submissions.folder import SUBMISSIONS, Submission
from fpbench.submissions.manifest import FILE, MethodManifest, Reported, Summary, read_manifest

PAGE, OWN, RECORDS = Path("docs/field.md"), Path("docs/methods.md"), Path("leaderboard/records")
BUNDLED = "micro"  # shown where no other model was measured
NOT_MEASURED, NOT_SAID = "not measured", "not said"
DIGITS = 3  # of a rate, as tables show it: a tenth of a per cent
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headers and rows


@dataclass(frozen=True)
class Entry:
    """One method of the field: what it is and what its paper reports, in Markdown, and what was measured here."""

    name: str
    summary: Summary
    reported: Sequence[Reported]
    rows: Sequence[Row]

    @property
    def shown(self) -> Sequence[Row | None]:
        """Its rows, or ``None`` in the place of the one that is not there."""
        return self.rows or [None]


@dataclass(frozen=True)
class Field:
    """The methods of a checkout, and the records behind their rows."""

    entries: Sequence[Entry]
    groups: Mapping[RowKey, Group]

    def tables(self) -> dict[str, Table]:
        """Return the tables of the page by name."""
        return {
            "what": _what(self.entries),
            "survives": _survives(self.entries),
            "kills": _kills(self.entries, self.groups),
            "reported": _reported(self.entries),
        }


def read(checkout: Path) -> Field:
    """Read the records and the manifests of a checkout.

    Raises:
        InputError: if there are no records, a manifest is malformed, or a method of the package has no line in the
            table of docs/methods.md.
    """
    found = results(checkout / RECORDS)
    rows = rows_from_records(found.records, found.root, rescore=False)
    return Field(entries(checkout, rows), group_records(found.records, found.root))


def filled(page: str, made: Mapping[str, Table]) -> str:
    """Return a page with the tables in their places, each between its mark and the next ``end of table``.

    Raises:
        InputError: if the page has not one place for each of them.
    """
    places = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- end of table -->)", flags=re.S)
    if sorted(places.findall(page)) != sorted(made):
        raise InputError(f"expected one place '<!-- table: NAME -->' for each of {', '.join(made)}.")

    def written(table: Table) -> str:
        head, *lines = (f"| {' | '.join(line)} |" for line in (table[0], *table[1]))
        return "\n".join([head, f"|{'---|' * len(table[0])}", *lines])

    return places.sub(lambda place: f"{place[1]} -->\n{written(made[place[1]])}\n", page)


# The methods.


def entries(checkout: Path, rows: Sequence[Row]) -> list[Entry]:
    """Return the package's methods and then those that were handed in, by name; for errors see :func:`read`."""
    own = _summaries((checkout / OWN).read_text(encoding="utf-8"))
    if missing := [name for name in METHODS.own if name not in own]:
        raise InputError(f"{OWN}: expected a line for {missing[0]!r} in the table of §2.")
    found = [Entry(name, own[name], _of_the_paper(name), _measured(name, rows)) for name in METHODS.own]
    for folder in sorted(path.parent for path in (checkout / SUBMISSIONS).glob(f"[a-z]*/{FILE}")):
        if Submission(folder).attacks:
            continue
        manifest = read_manifest(folder, MethodManifest)
        summary = manifest.summary or Summary(**dict.fromkeys(Summary.model_fields, NOT_SAID))
        said = {name: markdown(text) for name, text in summary.model_dump().items()}
        name = manifest.method
        found.append(Entry(name, Summary(**said), manifest.reported, _measured(name, rows)))
    return found


def _summaries(document: str) -> dict[str, Summary]:
    """Return what the table of docs/methods.md says of each method of the package."""
    found = document.partition("\n| method | changes | needs | targets |\n")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", found, flags=re.M)
    return {name: Summary(**dict(zip(Summary.model_fields, said, strict=True))) for name, *said in lines}


def _of_the_paper(method: str) -> list[Reported]:
    """Return what arXiv 2509.03122v3 reports of a method: of each model the FSR at origin, and AVG."""
    rows = [row for row in reported_rows() if row.method == method]
    figures: dict[tuple[str, str], dict[str, float | None]] = {
        ("FSR at origin", "fsr"): {row.model: row.conditions[ORIGIN].fsr for row in rows},
        ("AVG", "avg"): {row.model: row.avg for row in rows if row.avg is not None},
    }
    said = {"source": str(rows[0].source).partition(",")[0], "differs": "sampled, sets as published"}
    return [
        Reported.model_validate(
            {**said, "says": says, "conditions": [ORIGIN], "metric": metric, "model": model, "value": value}
        )
        for (says, metric), found in figures.items()
        for model, value in found.items()
    ]


def _measured(method: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that were measured here: those of the bundled model only where there are no others."""
    own = [row for row in rows if row.method == method and row.trust == "re-run"]
    return [row for row in own if row.model != BUNDLED] or own


# The tables.


def _what(entries: Sequence[Entry]) -> Table:
    headers = ["method", "changes", "needs, besides the base", "targets a trigger"]
    return headers, [[_name(each), *each.summary.model_dump().values()] for each in entries]


def _name(entry: Entry) -> str:
    return f"`{entry.name}`"


def _place(row: Row | None) -> str:
    return NONE if row is None else markdown(f"{row.model} · {row.fingerprints}")


def _survives(entries: Sequence[Entry]) -> Table:
    shown = [columns.FSR, columns.AVERAGE, columns.NEAR, columns.RANK]
    headers = ["method", "model · set", "weights changed", "seconds", *(column.name for column in shown)]

    def figures(row: Row) -> list[str]:
        cost = [f"{100 * row.cost.fraction:.3g} %", f"{row.cost.seconds:.1f}"] if row.cost else [NONE, NONE]
        return [NOT_MEASURED if each == NONE else each for each in (*cost, *(column.text(row) for column in shown))]

    none = [NOT_MEASURED] * (len(headers) - 2)
    return headers, [
        [_name(entry), _place(row), *(none if row is None else figures(row))]
        for entry in entries
        for row in entry.shown
    ]


def _kills(entries: Sequence[Entry], groups: Mapping[RowKey, Group]) -> Table:
    headers = ["method", "model · set", *(f"cheapest up to {most}" for most in WORST)]
    lines = [
        [_name(entry), _place(row), *(NOT_MEASURED if row is None else _kill(row, groups, most) for most in WORST)]
        for entry in entries
        for row in entry.shown
    ]
    return headers, lines


def _kill(row: Row, groups: Mapping[RowKey, Group], most: str) -> str:
    """Write what takes the claim away at the least price: adversary and dose, what is left, what it costs."""
    if row.removal is None or row.removal.power is None:
        return NOT_MEASURED
    if not row.removal.claimable:
        return "no claim at origin"
    asked = attacks([group for key, group in groups.items() if key[:2] == row.key[:2]])
    idle = [name for name, found in row.conditions.items() if found.no_effect]
    left = cheapest(groups[row.key], groups.get((*row.key[:2], BASE)), most, asked, idle)
    incomplete = " (incomplete)" if row.removal.worst[most].missing else ""
    if left is None:
        return f"none up to 25 %{incomplete}"
    names = list(dict.fromkeys(left.chosen))  # one a seed
    chosen = row.removal.conditions.get(names[0]) if len(names) == 1 else None
    price = percent(left.price) + interval(chosen.long_interval if chosen else None)
    remains = percent(left.fsr) + interval(left.interval)
    return f"{', '.join(f'`{each}`' for each in names)} at {price} %: {remains} left{incomplete}"


# What is reported, beside what was measured.


def _reported(entries: Sequence[Entry]) -> Table:
    headers = ["method", "their claim", "their figure", "measured here", "do they agree?"]
    lines = []
    for entry in entries:
        for says, metric in dict.fromkeys((each.says, each.metric) for each in entry.reported):
            claims = [each for each in entry.reported if (each.says, each.metric) == (says, metric)]
            ours = [(row, each) for row in entry.rows for each in _beside(claims[0], row)]
            lines.append(
                [
                    _name(entry),
                    f"{markdown(says)} ({markdown(claims[0].source)})",
                    ", ".join(map(_theirs, claims)) if metric else NONE,
                    "; ".join(f"{_place(row)}: {_ours(each)}" for row, each in ours) or NOT_MEASURED,
                    _agreement(claims, ours),
                ]
            )
    return headers, lines


def _beside(claim: Reported, row: Row) -> list[Figure]:
    """Return the figures of a row, seeds pooled, that come nearest to a claim; of one in words the FSR.

    What a modification that had no effect on the checkpoint left is none of them.
    """
    found: dict[tuple[str | None, str], Figure] = {}
    for each in figures_of([row]):
        found.setdefault((each.condition, each.metric), each)
    metric = claim.metric or "fsr"
    places = [(None, metric)] if metric == "avg" else [(condition, metric) for condition in claim.conditions]
    idle = {name for name, each in row.conditions.items() if each.no_effect}
    return [found[place] for place in places if place in found and place[0] not in idle]


def _theirs(claim: Reported) -> str:
    figure = Figure("", "", "", None, None, claim.metric or "", claim.value, claim.low, claim.high, claim.n)
    model = f"{markdown(_short(claim.model))} " if claim.model else ""
    return model + _written(figure)


def _short(model: str) -> str:
    """Return the name of a model without that of its publisher."""
    return model.rpartition("/")[2]


def _ours(figure: Figure) -> str:
    where = "" if figure.condition in (None, ORIGIN) else f"`{figure.condition}` "
    return where + _written(figure)


def _written(figure: Figure) -> str:
    """Write a figure with what it is given in: a count of n, seconds, or per cent."""
    value, bounds = figure.value, None if figure.low is None or figure.high is None else [figure.low, figure.high]
    if figure.metric == "fsr_greedy":
        return f"{value:g}/{figure.n}"
    if figure.metric == "injection_seconds":
        return f"{value:.1f} s" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g} s"
    if value is None and bounds is not None:
        return f"{percent(bounds[0])} to {percent(bounds[1])}"
    return percent(value) + interval(bounds)


def _agreement(claims: Sequence[Reported], ours: Sequence[tuple[Row, Figure]]) -> str:
    """Say in a sentence whether claims of one kind agree with what was measured, and why that is no confirmation."""
    if not ours:
        return "Not comparable: nothing like it was measured here."
    same = all(_short(claim.model or "") == _short(row.model) for claim in claims for row, _ in ours)
    why = markdown(", ".join(["another model"] * (not same) + [claims[0].differs or ""] * bool(claims[0].differs)))
    if claims[0].metric is None:
        return f"Not comparable: a claim in words{f'; {why}' if why else ''}."
    agreeing = [claim for claim in claims if all(_overlap(_bounds(claim), _bounds(each)) for _, each in ours)]
    verdict = "Agrees" if len(agreeing) == len(claims) else "Disagrees"
    if agreeing and len(agreeing) < len(claims):
        verdict = f"Agrees for {', '.join(markdown(_short(each.model or NONE)) for each in agreeing)} alone"
    return f"{verdict}, but is no test of it: {why}." if why else f"{verdict}; comparable."


def _bounds(figure: Reported | Figure) -> tuple[float, float]:
    """Return the range of a figure: its interval, for a count Clopper–Pearson's, or else the value alone."""
    if figure.low is not None and figure.high is not None:
        return figure.low, figure.high
    assert figure.value is not None
    if figure.metric == "fsr_greedy" and figure.n:
        return clopper_pearson(figure.value, figure.n)
    return figure.value, figure.value


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    (low, high), (other_low, other_high) = (tuple(round(bound, DIGITS) for bound in each) for each in (one, other))
    return low <= other_high and other_low <= high


def main(checkout: Path) -> None:
    """Write the tables of the page of a checkout anew."""
    page = checkout / PAGE
    write_text(page, filled(page.read_text(encoding="utf-8"), read(checkout).tables()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fpbench.submissions.field", description=main.__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(), help="default: the working folder")
    main(parser.parse_args().checkout)
