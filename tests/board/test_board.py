"""The board from records that are written down here: figures can be checked by hand."""

import csv
import io
import json

import pytest

from fpbench.board.columns import BAND_COUNTS, DATA
from fpbench.board.row import Bands, Failure, Row
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render, summary
from fpbench.errors import InputError
from fpbench.metrics.measure import METRICS, Metric
from fpbench.records.cell import PROTOCOL, Cell
from fpbench.records.record import cell_id
from fpbench.records.store import Store, read_records
from tests.board.written import MODIFIED, fsr, grid, near, utility, write


@pytest.fixture
def store(tmp_path):
    return grid(tmp_path)


def rows_of(store, **options):
    rows = rows_from_records(read_records(store.records), store.records, rescore=False, **options)
    return {row.method: row for row in rows if row.trust != "reported"}


def test_a_row_holds_the_protocol_s_figures(store):
    rows = rows_of(store)
    origin = rows["strong"].conditions["origin"]
    assert origin.fsr == 1.0
    assert origin.interval == pytest.approx([0.6915, 1.0], abs=1e-4)
    assert (origin.greedy, origin.n, origin.retention) == (10, 10, None)
    assert rows["strong"].avg == 1.0
    assert rows["strong"].avg_interval == pytest.approx([0.6915, 1.0], abs=1e-4)
    assert rows["weak"].avg_interval is None
    assert rows["strong"].conditions["int8"].retention == 1.0
    assert rows["weak"].conditions["int8"].retention == pytest.approx(0.25)
    # Retention is not shown where the origin is below 0.1.
    assert rows["base"].conditions["int8"].retention is None
    claim = rows["strong"].claim
    assert (claim.threshold, claim.power) == (3, pytest.approx(1.0))
    assert rows["base"].claim is None


def test_average_is_as_sure_as_the_condition_that_was_measured_on_the_fewest(store):
    whole = rows_of(store)["strong"].avg_interval
    for condition in ("origin", "int8"):
        fsr(store, "strong", condition, [0.0] * 10, seed=43)
    row = rows_of(store)["strong"]
    assert row.conditions["int8"].n == 20 and row.avg == pytest.approx(11 / 12)
    assert row.avg_interval == pytest.approx([0.5755, 0.9989], abs=1e-3) and row.avg_interval[0] < whole[0]


def test_fingerprints_count_once(store):
    for seed in (42, 43):
        identity = {"protocol": PROTOCOL, "method": "strong", "condition": "origin", "metric": "fsr"}
        identity |= {"fingerprints": "d", "seed": seed}
        fsr(store, "strong", "origin", [1.0] * 10, seed=seed, identity=identity, id=cell_id(identity))
    with pytest.raises(InputError, match="strong/seed-43/origin/fsr is of the same fingerprints as those of seed 42"):
        rows_of(store)


def test_utility_is_the_paired_difference_from_the_base(store):
    found = rows_of(store)["strong"].utility.difference
    assert found.accuracy == pytest.approx(-0.2)
    assert found.interval[0] < -0.2 < found.interval[1] <= 0.0
    assert found.token_perplexity == pytest.approx(0.2)
    # Every window has the same ratio, so resampling them in pairs changes nothing.
    assert found.token_perplexity_interval == pytest.approx([0.2, 0.2]) and found.windows == 4
    # Two examples of each task changed, both for the worse: 2 · (1/2)^2.
    assert found.tasks["rte"]["p_value"] == pytest.approx(0.5)


def test_perplexities_over_windows_of_different_length_are_not_compared(store):
    result = {
        "accuracy": None,
        "tasks": {},
        "word_perplexity": None,
        "token_perplexity": {"perplexity": 9, "length": 9},
    }
    write(store, "strong", "origin", "utility", result)
    assert rows_of(store)["strong"].utility.difference.token_perplexity is None


def test_accuracies_over_other_examples_are_not_compared(store):
    """It had ended in a traceback, or in the difference of two unlike means."""
    utility(store, "base", [True] * 16 + [False] * 4, 10.0)
    difference = rows_of(store)["strong"].utility.difference
    assert (difference.accuracy, difference.interval, difference.tasks) == (None, None, {})
    assert difference.token_perplexity == pytest.approx(0.2)


def test_a_failed_cell_is_shown_with_its_reason_and_takes_the_average_along(store):
    row = rows_of(store)["weak"]
    assert row.avg is None and row.rank is None
    assert row.failed == [Failure("nf4", "fsr", 42, "width 172 | not divisible by 32")]
    markdown = render(list(rows_of(store).values()), "md")
    assert "failed" in markdown
    assert "width 172 \\| not divisible by 32" in markdown


def test_ranks_compare_each_row_with_the_best(store):
    fsr(store, "weak", "nf4", [0.1] * 10)
    rows = rows_of(store)
    assert (rows["strong"].rank, rows["weak"].rank, rows["base"].rank) == (1, 2, None)
    for condition in MODIFIED:
        fsr(store, "weak", condition, [1.0] * 9 + [0.99])
    assert rows_of(store)["weak"].rank == 1  # a tie


def test_seeds_are_pooled(store):
    fsr(store, "strong", "origin", [0.0] * 10, seed=43)
    origin = rows_of(store)["strong"].conditions["origin"]
    assert (origin.fsr, origin.n) == (0.5, 20)


def test_missing_or_changed_query_results_are_a_failure(store):
    path = store.record_path(Cell("tiny", "nlf", "strong", 42, "origin", "fsr")).with_suffix(".jsonl")
    path.write_text(path.read_text().replace("1.0", "0.9", 1))
    row = rows_of(store)["strong"]
    assert row.conditions["origin"].fsr is None
    assert "not those that the record names" in row.failed[0].reason


def test_protocols_are_never_mixed(store):
    fsr(store, "strong", "origin", [1.0] * 10, protocol=PROTOCOL - 1)
    with pytest.raises(InputError, match=f"strong/seed-42/origin/fsr is of protocol {PROTOCOL - 1}"):
        rows_of(store)


def test_tables_are_the_same_bytes_from_the_same_records(store):
    records = read_records(store.records)
    for kind in ("md", "csv", "wide", "json", "html", "latex"):
        rows = [rows_from_records(order, store.records, rescore=False) for order in (records, records[::-1])]
        assert render(rows[0], kind) == render(rows[1], kind)


def test_formats_hold_every_row(store):
    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    assert len(json.loads(render(rows, "json"))["rows"]) == len(rows)
    assert len(list(csv.reader(io.StringIO(render(rows, "wide"))))) == len(rows) + 1
    with pytest.raises(InputError, match="format 'xls'"):
        render(rows, "xls")
    text = summary(list(rows_of(store).values()))
    assert "100.0 [69.2, 100.0]" in text and "+20.0 % [20.0, 20.0]" in text and "Failed cells" in text


def test_the_paper_s_figures_are_carried_over_as_reported():
    rows = {(row.model, row.method): row for row in rows_from_records([], None, rescore=False)}
    row = rows["mistralai/Mistral-7B-Instruct-v0.3", "mcedit_a"]
    assert row.trust == "reported"
    assert row.conditions["finetune_alpaca"].fsr == pytest.approx(0.9)
    assert row.avg == pytest.approx(0.928)
    assert row.utility.difference.accuracy == pytest.approx(-0.0024)
    assert len(rows) == 21


def test_bands_are_written_in_the_order_of_the_legend():
    """Records sort their keys, so the counts arrive as abnormal, marginal, normal."""
    bands = Bands({"abnormal": 7, "marginal": 1, "normal": 2}, trigger_mean=9.0, mean=3.0, auc=1.0)
    row = Row("tiny", "strong", "nlf", "re-run", 1, {}, None, bands=bands)
    assert BAND_COUNTS.text(row) == "2/1/7"


def test_a_further_metric_has_a_column_in_every_table_and_its_figures_in_json(store, monkeypatch):
    echo = Metric(lambda model, given: ({}, []), heading="echo", help="Share.", figure="share", text="{:.1%}".format)
    monkeypatch.setitem(METRICS, "echo", echo)
    write(store, "strong", "origin", "echo", {"share": 0.125, "n": 8})
    write(store, "weak", "origin", "echo", reason="out of memory")
    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    shown = {line["method"]: line["echo"] for line in csv.DictReader(io.StringIO(render(rows, "wide")))}
    assert (shown["strong"], shown["weak"], shown["base"]) == ("12.5%", "failed", "–")
    assert "12.5%" in render(rows, "md") and 'data-value="0.125"' in render(rows, "html")
    (row,) = (row for row in json.loads(render(rows, "json"))["rows"] if row["method"] == "strong")
    assert row["echo"] == {"share": 0.125, "n": 8}


def test_a_row_says_where_its_data_were_read_from(tmp_path):
    store, text = Store(tmp_path), "stand-in: 300 documents"
    fsr(store, "strong", "origin", [1.0] * 10, provenance={"data": {"alpaca": "mirror", "c4": text}})
    near(store, "strong", [0.0] * 10, provenance={"data": {"alpaca": text, "boolq": "hub"}})
    fsr(store, "toy", "origin", [1.0] * 10, provenance={"data": {"alpaca": "bundled", "boolq": "bundled"}})
    rows = rows_of(store)
    assert rows["strong"].data == {"alpaca": ["mirror", text], "boolq": ["hub"], "c4": [text]}
    assert DATA.text(rows["strong"]) == "hub 1, mirror 1, stand-in 2"
    assert DATA.note(rows["strong"]) == f"alpaca: mirror / {text}; boolq: hub; c4: {text}"
    assert DATA.text(rows["toy"]) == "bundled"
    assert "data bundled" in render([rows["toy"]], "md") and ",bundled," in render([rows["toy"]], "wide")


def test_a_hundred_fingerprints_show_a_hundredfold_certainty(tmp_path):
    store, large = Store(tmp_path), {"fingerprints": "nlf-100"}
    for condition in ("origin", *MODIFIED):
        fsr(store, "base", condition, [0.0] * 100, cell=large)
        fsr(store, "strong", condition, [1.0] * 100, cell=large)
        fsr(store, "weak", condition, [1.0] * 60 + [0.0] * 40, cell=large)
    rows = rows_of(store)
    assert rows["strong"].conditions["origin"].interval == pytest.approx([0.9638, 1.0], abs=1e-4)
    # Of 100 at chance 1 % each, P(K >= 6) = 5.3e-4 and P(K >= 5) = 3.4e-3.
    assert rows["strong"].claim.threshold == 6
    assert rows["weak"].claim.power == pytest.approx(1.0)
    board = render(list(rows.values()), "md")
    assert "100.0 [96.4, 100.0]" in board and "60.0 [49.7, 69.7]" in board and "nlf-100" in board
