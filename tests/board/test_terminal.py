"""What is printed: fits its width, says once what is the same everywhere, and shows only what was asked for."""

import re

import pytest

from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render
from fpbench.board.terminal import overview, summary
from fpbench.records.store import read_records
from tests.board.written import attacked_grid, fsr
from tests.conftest import ROOT

RECORDS = ROOT / "leaderboard" / "records"


@pytest.fixture(scope="module")
def micro():
    records = read_records(RECORDS / "micro", RECORDS)
    rows = rows_from_records(records, RECORDS, rescore=False)
    return [row for row in rows if row.trust != "reported"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_board_of_micro_fits(micro, width):
    text = summary(micro, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and all(row.method in re.sub(r"\s", "", text) for row in micro)


def test_where_it_is_piped_it_has_100_columns_and_its_first_table_at_most_eight(micro):
    text = summary(micro)
    assert max(map(len, text.splitlines())) <= 100
    said, _, first = text.split("\n\n")[0], *text.split("\n\n")[:2]
    assert said == "model micro · set nlf · data bundled · trust re-run"
    assert 5 <= len(overview(micro)) <= 8
    header = [line for line in first.splitlines() if line.startswith("rank")][0]
    assert re.split(r"  +", header)[:3] == ["rank", "method", "AVG"] and "model" not in header
    (best,) = (line for line in first.splitlines() if " alphaedit " in line)
    assert "100.0 [69.2, 100.0]" in best and "-0.8 [-1.2, -0.3]" in best, "estimate and interval have the same decimals"


def test_only_conditions_that_were_asked_for_are_shown(tmp_path):
    store = attacked_grid(tmp_path)
    fsr(store, "strong", "finetune_math+nf4", [0.5] * 10)
    rows = [row for row in rows_from_records(read_records(store.records), store.records, rescore=False) if row.cells]
    text = summary(rows)
    conditions = text.split("FSR by condition")[1].split("Imperceptibility")[0]
    names = [line.split()[0] for line in conditions.splitlines()[2:] if line.strip()]
    assert "finetune_math+nf4" in names and "suppress@3" in names and "quantize@4" not in names
    prices = [float(each) for each in re.findall(r"^(?:suppress|merge)\S+ +(\d+\.\d)", conditions, flags=re.M)]
    assert prices == sorted(prices) and len(prices) == 4, "the cheapest attack first"


def test_nothing_is_minus_zero(micro):
    for text in (
        summary(micro),
        render(micro, "md"),
        render(micro, "wide"),
        render(micro, "html"),
        render(micro, "latex"),
    ):
        assert not re.search(
            r"[-−]0(?:\.0+)?(?![\d.])", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.S)
        )


def test_no_column_stands_twice_and_what_puts_a_row_out_is_beside_its_bar(micro):
    text = summary(micro, 400)
    heads = [line for line in text.splitlines() if line.startswith(("rank ", "method "))]
    assert len(heads) == 2
    for line in heads:
        names = re.split(r"  +", line.strip())
        assert len(names) == len(set(names)), line
    assert "perplexity at most 25 % up; at most 50 % of triggers and 10 % of near triggers answered." in text
