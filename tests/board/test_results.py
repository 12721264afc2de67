"""What a run has measured, for pandas: every figure once, as a number, from whatever folder of records is named."""

import csv
import io
import math
import shutil

import pytest

import fpbench
from fpbench.board.long import COLUMNS
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render
from fpbench.cli import main
from fpbench.records.store import Store, find_records, read_records
from tests.board.written import attacked_grid, fsr, grid, near


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return grid(tmp_path_factory.mktemp("written")).folder


@pytest.fixture
def run(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def figure(frame, **where):
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def test_a_figure_is_one_line_with_its_interval_and_unit(run):
    frame = fpbench.results(run).to_pandas()
    assert (
        list(frame.columns) == list(COLUMNS) == "model set method seed condition metric value low high n unit".split()
    )
    found = figure(frame, method="weak", condition="origin", metric="fsr")
    assert (found.model, found.set, found.seed, found.value, found.n, found.unit) == (
        "tiny",
        "nlf",
        42,
        0.4,
        10,
        "fraction",
    )
    assert (found.low, found.high) == pytest.approx((0.1216, 0.7376), abs=1e-3)
    assert figure(frame, method="weak", condition="int8", metric="retention").value == pytest.approx(0.25)
    away = figure(frame, method="strong", metric="accuracy_difference")
    assert away.value == pytest.approx(-0.2) and away.low < -0.2 < away.high and away.n == 20
    assert figure(frame, method="strong", metric="avg").value == 1.0
    assert frame[(frame.method == "weak") & (frame.condition == "nf4")].empty, "a failed cell has no figure"
    assert {str(kind) for kind in frame.dtypes[["value", "low", "high"]]} == {"float64"}


def test_seeds_that_are_pooled_have_lines_of_their_own(run):
    fsr(Store(run), "strong", "origin", [0.0] * 10, seed=43)
    frame = fpbench.results(run).to_pandas()
    found = frame[(frame.method == "strong") & (frame.condition == "origin") & (frame.metric == "fsr")]
    assert (
        found.seed.fillna(0).tolist() == [0, 42, 43]
        and found.value.tolist() == [0.5, 1.0, 0.0]
        and found.n.tolist() == [20, 10, 10]
    )


def test_a_removal_price_is_a_bracket_and_open_where_no_dose_is_enough(tmp_path):
    attacked_grid(tmp_path)
    frame = fpbench.results(tmp_path).to_pandas()
    found = figure(frame, method="strong", metric="removal_price_long")
    assert found.low <= found.value == found.high
    paid = frame[(frame.method == "strong") & (frame.condition == "suppress@3") & (frame.metric == "price_long")]
    assert paid[paid.seed.isna()].value.tolist() == pytest.approx([0.03])
    worst = frame[(frame.method == "strong") & (frame.condition == "worst L1") & (frame.metric == "fsr_at_10_percent")]
    assert len(worst) == 1


def test_the_csv_is_the_same_and_says_whose_figures_they_are(run):
    rows = rows_from_records(read_records(run / "records"), run / "records", rescore=False)
    lines = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert list(lines[0]) == [*COLUMNS, "trust"] and {each["trust"] for each in lines} == {"re-run", "reported"}
    own = [each for each in lines if each["trust"] == "re-run"]
    frame = fpbench.results(run).to_pandas()
    assert len(own) == len(frame)
    for line, (_, each) in zip(own, frame.iterrows(), strict=True):
        assert (line["metric"], line["method"]) == (each.metric, each.method)
        assert math.isnan(each.value) if line["value"] == "" else float(line["value"]) == each.value


def test_records_are_dictionaries_and_rows_those_of_the_board(run):
    found = fpbench.results(run)
    assert len(found) == len(read_records(run / "records")) and found[0]["cell"]["model"] == "tiny"
    assert len(found[2:5]) == 3 and found[-1]["status"] in ("done", "failed")
    assert [row["method"] for row in found.rows] == ["base", "strong", "weak"] and found.rows[1]["avg"] == 1.0
    assert len(repr(found).splitlines()) <= 12 and "strong: AVG 100.0 %" in repr(found)


def test_per_query_results_are_lines_too(run):
    frame = fpbench.results(run).per_query()
    own = frame[(frame.method == "weak") & (frame.condition == "origin") & (frame.metric == "fsr")]
    assert own.probability.tolist() == [0.4] * 10 and own.line.tolist() == list(range(10))
    kinds = frame[(frame.method == "strong") & (frame.metric == "triggers")]
    assert set(kinds.condition) == {"origin"} and "upper_prefix" in set(kinds.kind)


@pytest.mark.parametrize("part", ["", "records", "records/tiny", "records/tiny/nlf/strong"])
def test_a_run_its_records_and_a_part_of_them_are_all_accepted(run, part, capsys, monkeypatch):
    near(Store(run), "other", [0.0] * 10, cell={"model": "else"})
    found = fpbench.results(run / part)
    models = {each["cell"]["model"] for each in found}
    assert models == ({"tiny"} if "tiny" in part else {"tiny", "else"})
    assert "strong" in {row["method"] for row in found.rows}
    assert main(["leaderboard", str(run / part)]) == main(["leaderboard", "--records", str(run / part)]) == 0
    assert "| strong |" in capsys.readouterr().out.replace("  ", "")
    monkeypatch.chdir(run / part)
    assert len(fpbench.results(".")) == len(found)


def test_the_records_of_one_model_may_lie_anywhere(run, tmp_path):
    shutil.copytree(run / "records" / "tiny", tmp_path / "elsewhere" / "tiny")
    assert len(fpbench.results(tmp_path / "elsewhere" / "tiny")) == len(fpbench.results(run))


def test_a_folder_without_records_is_refused_in_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert find_records(tmp_path / "empty") == (tmp_path / "empty", tmp_path / "empty")
    for arguments, said in (
        (["empty"], "holds no records"),
        (["none"], "does not exist"),
        (["empty", "--records", "empty"], "name the records twice"),
    ):
        assert main(["leaderboard", *(str(tmp_path / each) if each[0] != "-" else each for each in arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
