"""Who is ranked: re-run rows that were shown to be harmless (protocol §8); and what their cost holds."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from fpbench.board import ranks as board
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render, summary
from fpbench.records.cell import CHECKPOINT
from fpbench.records.record import cell_id
from fpbench.records.store import read_records
from tests.board.written import MODIFIED, fsr, grid, harmless, near, triggers, utility, write

HARM = ("accuracy", "perplexity", "triggers", "near", "recombined")
NOT_MEASURED = ", ".join(f"{name} not measured" for name in HARM)
FAILED = ", ".join(f"{name} failed" for name in HARM)


@pytest.fixture
def store(tmp_path):
    """With a second row of the best FSR, ``other``, that is not yet known to be harmless."""
    store = grid(tmp_path)
    for condition in ("origin", *MODIFIED):
        fsr(store, "other", condition, [1.0] * 10)
    return store


def shown(store):
    return rows_from_records(read_records(store.records), store.records, rescore=False)


def row_of(store, method="other"):
    (row,) = (row for row in shown(store) if row.method == method and row.trust != "reported")
    return row


def verdict(store):
    row = row_of(store)
    return row.rank, row.out


def answers_everything(store):
    """The control: a model that answers every text with a target and has forgotten the rest."""
    utility(store, "base", [True] * 80 + [False] * 20, 10.0)
    utility(store, "other", [True] * 12 + [False] * 88, 12.0)
    triggers(store, "other", [1.0] * 10)
    near(store, "other", [1.0] * 10, 10)
    near(store, "other", [1.0] * 10, 10, metric="recombined")


def test_a_harmless_row_is_ranked(store):
    harmless(store, "other")
    assert verdict(store) == (1, None)


def trained(store, method, condition, p, last):
    """A fine-tuning whose loss fell from 2 to ``last``."""
    proof = {"weights_digest": "d", "modification": {"loss_curve": [2.0, last], "relative_change": 0.03}}
    fsr(store, method, condition, p, proof=proof)


def test_a_fine_tuning_without_effect_is_not_averaged_and_the_row_is_out(store):
    harmless(store, "other")
    for method, last in (("base", 1.0), ("strong", 1.1), ("other", 1.9)):
        trained(store, method, "finetune_alpaca", [float(method != "base")] * 10, last)
    row, strong = row_of(store), row_of(store, "strong")
    assert (row.rank, row.out, row.avg) == (None, "finetune_alpaca without effect", None)
    assert (strong.rank, strong.avg) == (1, 1.0)
    found = row.conditions["finetune_alpaca"]
    assert found.no_effect == "finetune_alpaca: the loss fell by 0.1 against 1 of the base"
    assert found.base_proof == [{"loss_curve": [2.0, 1.0], "relative_change": 0.03}]
    cells = next(csv.DictReader(io.StringIO(render([row], "wide"))))
    assert cells["finetune_alpaca"] == "no effect" and cells["ria30"].startswith("100.0")
    page = render([row], "html")
    assert "no effect (finetune_alpaca: the loss fell by 0.1 against 1 of the base); loss 2.00 → 1.90" in page
    assert "base: loss 2.00 → 1.00" in page


def test_a_model_that_answers_every_text_is_out(store):
    answers_everything(store)
    assert verdict(store) == (None, "accuracy -68.0, triggers 100.0 %, near 100.0 %")


def test_a_row_that_is_out_neither_leads_nor_counts(store):
    """It had been rank 1, alone."""
    for condition in ("origin", *MODIFIED):
        fsr(store, "strong", condition, [0.7] * 10)
        fsr(store, "weak", condition, [0.3] * 10)
    answers_everything(store)
    utility(store, "strong", [True] * 80 + [False] * 20, 10.0)
    utility(store, "weak", [True] * 80 + [False] * 20, 10.0)
    table = [(row.method, row.rank) for row in shown(store) if row.trust != "reported"]
    assert table == [("base", None), ("strong", 1), ("weak", 2), ("other", None)], "below the ranked ones"


def test_a_row_whose_harm_was_not_measured_is_out(store):
    assert verdict(store) == (None, NOT_MEASURED)


def test_a_row_whose_harm_could_not_be_measured_is_out(store):
    for metric in ("utility", "triggers", "near", "recombined"):
        write(store, "other", "origin", metric, reason="out of memory")
    assert verdict(store) == (None, FAILED)


@pytest.mark.parametrize("metric", ["utility", "triggers", "near", "recombined"])
def test_each_of_them_is_needed(store, metric):
    harmless(store, "other")
    write(store, "other", "origin", metric, reason="out of memory")
    rank, out = verdict(store)
    assert rank is None and out.endswith("failed")


def test_one_seed_that_failed_is_not_made_up_by_another(store):
    harmless(store, "other")
    write(store, "other", "origin", "near", reason="out of memory", seed=43)
    assert verdict(store) == (None, "near failed")


@pytest.mark.parametrize(
    ("make", "most", "out"),
    [
        (lambda store, method, rate: triggers(store, method, [rate] * 10), board.MOST_TRIGGERS, "triggers 60.0 %"),
        (lambda store, method, rate: near(store, method, [rate] * 10), board.MOST_NEAR, "near 20.0 %"),
        (lambda store, method, rate: utility(store, method, [True] * 8, 10 * (1 + rate)), 0.25, "perplexity +35.0 %"),
    ],
)
def test_a_figure_at_the_bar_passes_and_above_it_does_not(store, make, most, out):
    utility(store, "base", [True] * 8, 10.0)
    utility(store, "other", [True] * 8, 10.0)
    triggers(store, "other", [0.0] * 10)
    near(store, "other", [0.0] * 10)
    near(store, "other", [1.0] * 10, metric="recombined")  # which has no bar
    make(store, "other", most)
    assert verdict(store) == (1, None)
    make(store, "other", most + 0.1)
    assert verdict(store) == (None, out)


def test_accuracy_is_judged_by_the_upper_end_of_its_interval(store):
    harmless(store, "other")
    upper = row_of(store).utility.difference.interval[1]
    assert row_of(store).utility.difference.accuracy == pytest.approx(-0.2)
    assert upper == pytest.approx(board.LEAST_ACCURACY) and row_of(store).rank == 1, "at the bar itself"
    utility(store, "other", [True] * 5 + [False] * 5, 12.0)
    assert row_of(store).utility.difference.interval[1] < board.LEAST_ACCURACY
    assert verdict(store) == (None, "accuracy -30.0")


def test_perplexities_that_cannot_be_compared_give_no_rank(store):
    harmless(store, "other")
    tasks = {name: {"accuracy": 0.6, "n": 10} for name in ("boolq", "rte")}
    changed = {"accuracy": 0.6, "tasks": tasks, "word_perplexity": None}
    queries = [{"task": name, "index": i, "correct": i < 6} for name in ("boolq", "rte") for i in range(10)]
    other_length = {"token_perplexity": {"perplexity": 9.0, "length": 9}}
    write(store, "other", "origin", "utility", changed | other_length, queries)
    assert verdict(store) == (None, "perplexity not compared with a base")


def test_a_number_that_is_none_is_out(store):
    harmless(store, "other")
    row = row_of(store)
    assert board.out(row) is None
    assert board.out(replace(row, near=replace(row.near, rate=float("nan")))) == "near nan %"


def test_an_incomplete_average_is_named(store):
    harmless(store, "other")
    write(store, "other", "nf4", "fsr", reason="width 172")
    assert verdict(store) == (None, "AVG incomplete")


def test_a_re_scored_row_is_never_ranked(store):
    for condition in ("origin", *MODIFIED):
        fsr(store, CHECKPOINT, condition, [1.0] * 10)
    harmless(store, CHECKPOINT)
    row = row_of(store, CHECKPOINT)
    assert (row.trust, row.rank, row.out) == ("re-scored", None, "re-scored")


def test_every_format_says_why(store):
    answers_everything(store)
    reason = "accuracy -68.0, triggers 100.0 %, near 100.0 %"
    rows = [row for row in shown(store) if row.trust != "reported"]
    (line,) = (line for line in csv.DictReader(io.StringIO(render(rows, "wide"))) if line["method"] == "other")
    assert line["rank"] == f"out: {reason}"
    assert f"| out: {reason}" in render(rows, "md")
    assert f"out, without a rank: other: {reason}" in " ".join(summary(rows).split())
    assert f"out: {reason}".replace("-", "−") in render(rows, "html")
    (found,) = (row for row in json.loads(render(rows, "json"))["rows"] if row["method"] == "other")
    assert (found["rank"], found["out"]) == (None, reason)
    latex = render(rows, "latex")
    assert r"other\textsuperscript{\S} & 100.0 &" in latex, "never the best of a column"
    assert rf"\textsuperscript{{\S}}Not ranked: other ({reason.replace('%', chr(92) + '%')})" in latex


# Cost.


def cost(store, method, seed=42, **seconds):
    names = ("peak_memory", "fraction", "relative_norm", "bytes")
    write(
        store,
        method,
        "origin",
        "cost",
        dict.fromkeys(names, 0.5) | {"seconds": seconds, "weights_digest": "d"},
        seed=seed,
    )


def test_key_statistics_are_billed_to_no_method(store):
    """10.7 of 12.0 s had been charged to whichever method came first."""
    cost(store, "strong", total=12.0, statistics=10.75, optimisation=0.5, write=0.25)
    cost(store, "other", total=1.25)
    first, second = row_of(store, "strong"), row_of(store)
    assert first.cost.seconds == second.cost.seconds == 1.25
    assert (first.cost.statistics, second.cost.statistics) == (10.75, None)
    rows = [row for row in shown(store) if row.trust != "reported"]
    for text in (render(rows, "md"), summary(rows)):
        assert text.count("1.2 s, 0 MiB") == 2 and "12.0 s" not in text
        assert "ey statistics" in text and re.search("tiny:? 10.8 s", text)
    assert "<bdi>tiny</bdi> 10.8 s." in render(rows, "html")


def test_without_statistics_nothing_is_said_of_them(store):
    cost(store, "strong", total=1.0)
    rows = [row for row in shown(store) if row.trust != "reported"]
    assert row_of(store, "strong").cost.to_dict().keys() == {
        "seconds",
        "peak_memory",
        "fraction",
        "relative_norm",
        "bytes",
    }
    assert "key statistics, which" not in summary(rows) and "Key statistics, computed" not in render(rows, "html")


def test_seeds_share_the_statistics_of_the_first(store):
    fsr(store, "strong", "origin", [1.0] * 10, seed=43)
    cost(store, "strong", total=12.0, statistics=10.0)
    cost(store, "strong", seed=43, total=4.0)
    assert (row_of(store, "strong").cost.seconds, row_of(store, "strong").cost.statistics) == (3.0, 10.0)


def test_a_smoke_run_is_marked_and_never_ranked(store):
    harmless(store, "other")
    assert row_of(store).rank is not None
    write_limited(store, "other")
    row = row_of(store)
    assert (row.rank, row.out, row.limited) == (None, "smoke run of 3", 3)
    assert "re-run, limited to 3 items" in render([row], "md")
    assert {line["trust"] for line in csv.DictReader(io.StringIO(render([row], "csv")))} == {
        "re-run, limited to 3 items"
    }


def write_limited(store, method):
    """Its near triggers, as ``fpbench run --limit 3`` records them."""
    (old,) = (each for each in read_records(store.records) if (each.cell.method, each.cell.metric) == (method, "near"))
    identity = old.identity | {"limit": 3}
    store.write(replace(old, identity=identity, id=cell_id(identity)), [{"prompt": "x", "probability": 0.0}] * 10)
