"""docs/field.md: its tables are what records and manifests give, and its words on agreement follow from the figures."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fpbench.board.long import Figure
from fpbench.board.removal import WORST, attacks, cheapest
from fpbench.board.reported import reported_rows
from fpbench.errors import InputError
from fpbench.records.cell import BASE
from fpbench.registry import METHODS
from fpbench.submissions.field import Field, Table, _agreement, _beside, _of_the_paper, entries, filled, read
from fpbench.submissions.manifest import MethodManifest, Reported, Summary, read_manifest
from tests.conftest import ROOT
from tests.docs import markdown
from tests.docs.markdown import names, table

DOCUMENT = markdown.read("field.md")
HANDED_IN = sorted(path.parent.name for path in (ROOT / "submissions").glob("[a-z]*/submission.toml"))


@pytest.fixture(scope="module")
def checkout() -> Field:
    return read(ROOT)


@pytest.fixture(scope="module")
def made(checkout: Field) -> dict[str, Table]:
    return checkout.tables()


def test_the_tables_are_what_records_and_manifests_give(made: dict[str, Table]) -> None:
    assert filled(DOCUMENT, made) == DOCUMENT, "python -m fpbench.submissions.field"


def test_every_method_is_in_every_table(made: dict[str, Table]) -> None:
    assert len(HANDED_IN) >= 7
    for name, (headers, lines) in made.items():
        assert {f"`{each}`" for each in (*METHODS.own, *HANDED_IN)} == {line[0] for line in lines}, name
        assert all(len(line) == len(headers) for line in lines)


def test_what_the_page_says_of_the_package_s_methods_stands_in_their_document_alone() -> None:
    lines = table(markdown.read("methods.md"), "| method | changes ")
    assert sorted(names(line["method"])[0] for line in lines) == sorted(METHODS.own)


@pytest.mark.parametrize("name", HANDED_IN)
def test_every_submission_says_what_its_paper_reports(name: str) -> None:
    folder = ROOT / "submissions" / name
    found = read_manifest(folder, MethodManifest).reported
    assert found
    if all(each.metric is None for each in found):
        assert "not at hand" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_cheapest_kill_is_the_removal_price_of_the_board(checkout: Field) -> None:
    groups = checkout.groups
    rows = [row for entry in checkout.entries for row in entry.rows if row.removal and row.removal.long]
    assert len(rows) > 8
    for row in rows:
        asked = attacks([group for key, group in groups.items() if key[:2] == row.key[:2]])
        idle = [name for name, found in row.conditions.items() if found.no_effect]
        l1, l3 = (cheapest(groups[row.key], groups[(*row.key[:2], BASE)], most, asked, idle) for most in WORST)
        assert row.removal and row.removal.long
        assert row.removal.long.high == (l3 and l3.price)
        assert l3 is None or l3 in row.removal.course
        if l1 is not None and row.removal.thief == "oracle":  # the blind one may choose worse of more
            assert l3 is not None and l3.price <= l1.price
    assert cheapest(groups[rows[0].key], None, "L3", asked) is None


def test_one_reader_gives_the_paper_s_claims_as_the_board_shows_them() -> None:
    claims = _of_the_paper("alphaedit")
    rows = {row.model: row for row in reported_rows() if row.method == "alphaedit"}
    assert {each.model: each.value for each in claims if each.metric == "avg"} == {
        m: row.avg for m, row in rows.items()
    }
    assert len(claims) == 2 * len(rows) == 6


def ours(value: float, low: float | None = None, high: float | None = None, metric: str = "fsr") -> list:
    row = next(row for row in reported_rows() if row.method == "lora")
    return [(row, Figure("", "", "", 42, "origin", metric, value, low, high, 10))]


def claim(**keys: object) -> list[Reported]:
    return [Reported.model_validate({"says": "all of them", "source": "table 1", **keys})]


@pytest.mark.parametrize(
    ("theirs", "here", "says"),
    [
        (claim(metric="fsr", value=0.9), ours(0.8, 0.5, 0.95), "Agrees, but is no test of it: another model."),
        (claim(metric="fsr", value=0.4), ours(0.8, 0.5, 0.95), "Disagrees, but is no test of it: another model."),
        # As the tables write them: both are 100.0.
        (claim(metric="fsr", value=1.0), ours(0.9, 0.6, 0.9999), "Agrees, but is no test of it: another model."),
        (claim(metric="retention", low=0.95, high=1.0), ours(0.97), "Agrees, but is no test of it: another model."),
        (claim(metric="fsr_greedy", value=10, n=10), ours(9, metric="fsr_greedy"), "Agrees, but is no test"),
        (claim(metric="fsr_greedy", value=10, n=10), ours(2, metric="fsr_greedy"), "Disagrees, but is no test"),
        (claim(metric="fsr", value=0.9, model="Llama-3.2-3B-Instruct"), ours(0.9), "Agrees; comparable."),
        (claim(differs="greedy"), ours(0.9), "Not comparable: a claim in words; another model, greedy."),
        (claim(metric="fsr", value=0.9), [], "Not comparable: nothing like it was measured here."),
        (
            claim(metric="fsr", value=0.9, model="A") + claim(metric="fsr", value=0.1, model="B"),
            ours(0.9, 0.8, 1.0),
            "Agrees for A alone, but is no test of it: another model.",
        ),
    ],
)
def test_the_word_on_agreement_follows_from_the_figures(theirs: list[Reported], here: list, says: str) -> None:
    assert _agreement(theirs, here).startswith(says)


def test_a_page_without_a_place_for_a_table_is_refused(made: dict[str, Table]) -> None:
    with pytest.raises(InputError, match="expected one place"):
        filled(DOCUMENT.replace("<!-- table: kills -->", ""), made)


def test_a_method_of_which_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "methods.md"
    document.write_text(markdown.read("methods.md"))
    handed_in = tmp_path / "submissions" / "utf" / "submission.toml"
    handed_in.parent.mkdir(parents=True)
    said = (ROOT / "submissions" / "utf" / "submission.toml").read_text(encoding="utf-8")
    handed_in.write_text(said)
    assert [each.name for each in entries(tmp_path, [])] == [*METHODS.own, "utf"]
    handed_in.write_text(re.sub(r"\[summary\]\n(.+\n)+", "", said))
    assert entries(tmp_path, [])[-1].summary == Summary(changes="not said", needs="not said", targets="not said")
    document.write_text(markdown.read("methods.md").replace("| `rledit` |", "| rledit |"))
    with pytest.raises(InputError, match=r"methods.md: expected a line for 'rledit'"):
        entries(tmp_path, [])


def test_what_had_no_effect_stands_beside_no_claim(checkout: Field) -> None:
    row = next(each for each in checkout.entries if each.name == "alphaedit").rows[0]
    claims = Reported(says="all of them", source="table 1", conditions=["int8", "nf4"])
    assert [each.condition for each in _beside(claims, row)] == ["int8", "nf4"]
    idle = replace(row.conditions["int8"], no_effect="int8: nothing changed")
    assert [each.condition for each in _beside(claims, replace(row, conditions={**row.conditions, "int8": idle}))] == [
        "nf4"
    ]
