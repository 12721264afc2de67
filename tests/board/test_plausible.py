"""A record with a figure that cannot be is refused by its name; a damaged one stands as failed."""

import pytest

from fpbench.board.rows import rows_from_records
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.records.cell import Cell
from fpbench.records.store import read_records
from tests.board.written import fsr, grid, write


@pytest.fixture
def store(tmp_path):
    return grid(tmp_path)


def rows_of(store):
    return rows_from_records(read_records(store.records), store.records, rescore=False)


def at(condition, metric="fsr"):
    return f"record tiny/nlf/strong/seed-42/{condition}/{metric}: "


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        ({"mean": 1.01}, r"fsr 1.01 is outside \[0, 1\]"),
        ({"mean": -0.5}, r"fsr -0.5 is outside \[0, 1\]"),
        ({"mean": None}, r"fsr None is outside \[0, 1\]"),
        ({"mean": 0.7}, r"fsr 0.7 is not the mean of its queries, 1.0"),
        ({"error_bound": 2e-6}, r"error bound of fsr 2e-06 is outside \[0, 1e-06\]"),
        ({"error_bound": -1e-9}, r"error bound of fsr -1e-09 is outside"),
        ({"greedy": 9}, r"fsr_greedy 9/10 is not the k/n of its queries, 10/10"),
        ({"n": 11}, r"fsr_greedy 10/11 is not the k/n of its queries, 10/10"),
    ],
)
def test_an_impossible_fsr_is_refused_by_name(store, figures, what):
    fsr(store, "strong", "int8", [1.0] * 10, figures)
    with pytest.raises(InputError, match=at("int8") + what):
        rows_of(store)


def test_the_bound_itself_is_allowed(store):
    fsr(store, "strong", "int8", [1.0] * 10, {"error_bound": 1e-6})
    rows_of(store)


def test_a_probability_outside_0_and_1_is_refused(store):
    fsr(store, "strong", "int8", [1.5, 0.5])
    with pytest.raises(InputError, match=at("int8") + r"probability of a fingerprint 1.5 is outside \[0, 1\]"):
        rows_of(store)


@pytest.mark.parametrize(
    ("condition", "proof"),
    [
        ("ria30", {"sparsity": 0.3051}),
        ("ria40", {"sparsity": 0.3949}),
        ("ria40", {}),
        ("merge+ria30", {"merge": {}, "ria30": {"sparsity": 0.2}}),
    ],
)
def test_sparsity_off_its_target_is_refused(store, condition, proof):
    fsr(store, "strong", condition, [1.0] * 10, proof={"modification": proof})
    with pytest.raises(InputError, match=r"/fsr: sparsity .* is not within 0.005 of 0\.[34]"):
        rows_of(store)


def test_sparsity_near_its_target_is_allowed(store):
    fsr(store, "strong", "ria40", [1.0] * 10, proof={"modification": {"sparsity": 0.4049}})
    fsr(store, "strong", "merge+ria30", [1.0] * 10, proof={"modification": {"ria30": {"sparsity": 0.2951}}})
    rows_of(store)


def cost(store, digest, seed=42):
    names = ("peak_memory", "fraction", "relative_norm", "bytes")
    figures = dict.fromkeys(names, 0.5) | {"seconds": {"total": 1.0}, "weights_digest": digest}
    write(store, "strong", "origin", "cost", figures, seed=seed)


def test_scored_weights_that_were_not_injected_are_refused(store):
    cost(store, "d")
    rows_of(store)
    cost(store, "e")
    with pytest.raises(InputError, match=at("origin") + "weights scored at origin d are not those injected"):
        rows_of(store)


@pytest.mark.parametrize(
    ("metric", "figures", "what"),
    [
        ("near", {"rate": 1.2}, "rate 1.2 is outside"),
        ("near", {"greedy": 5}, r"rate: greedy count 5 is outside \[0, 4\]"),
        ("near", {"error_bound": 1.0}, "error bound 1.0 is outside"),
        ("triggers", {"conditions": {"upper_infix": {"rate": -1, "greedy": 0, "n": 4}}}, "upper_infix -1 is outside"),
    ],
)
def test_impossible_rates_are_refused(store, metric, figures, what):
    sound = {"rate": 0.5, "greedy": 2, "n": 4, "interval": [0, 1], "error_bound": 0.0}
    write(store, "strong", "origin", metric, sound | figures)
    with pytest.raises(InputError, match=at("origin", metric) + what):
        rows_of(store)


def test_the_command_refuses_in_one_line_and_writes_nothing(store, tmp_path, capsys):
    fsr(store, "strong", "int8", [1.0] * 10, {"mean": 1.01})
    out = tmp_path / "out"
    assert main(["leaderboard", "--records", str(store.records), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and at("int8") in error and not out.exists()


def test_a_damaged_record_is_shown_as_failed_and_refuses_nothing(store):
    path = store.record_path(Cell("tiny", "nlf", "strong", 42, "int8", "fsr"))
    path.write_text(path.read_text().replace('"mean": 1.0', '"mean": 9.0'))
    (row,) = (row for row in rows_of(store) if row.method == "strong")
    assert row.conditions["int8"].fsr is None and "damaged" in row.failed[0].reason
