"""The removal table from records that are written down here: figures can be checked by hand."""

import csv
import io
import json
import re
import shutil

import pytest

from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render, summary
from fpbench.errors import InputError
from fpbench.records.cell import Cell
from fpbench.records.store import Store, read_records
from tests.board.written import (
    ATTACK_SEEDS as SEEDS,
)
from tests.board.written import (
    SAMPLERS,
    attacked,
    attacked_grid,
    fsr,
    grid,
    harmless,
    near,
    price,
    priced,
    utility,
    write,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two seeds: ``strong`` as above, and ``weak``, which the first dose takes down."""
    folder = tmp_path_factory.mktemp("removal")
    attacked_grid(folder)
    return folder


@pytest.fixture
def store(written, tmp_path) -> Store:
    """A copy of its own, since a store waits for the disk at every record."""
    return Store(shutil.copytree(written, tmp_path / "run"))


def rows_of(store, **options):
    rows = rows_from_records(read_records(store.records), store.records, rescore=False, **options)
    return {row.method: row for row in rows if row.trust != "reported"}


def csv_of(store):
    lines = csv.DictReader(io.StringIO(render(list(rows_of(store).values()), "wide")))
    return {line["method"]: line for line in lines}


def test_what_is_left_within_a_budget(store):
    found = rows_of(store)["strong"].removal
    assert found.thief == "blind"
    left = {name: {budget: each.fsr for budget, each in of.within.items()} for name, of in found.adversaries.items()}
    assert left == {
        "merge": {"0.01": 1.0, "0.1": 1.0},  # 12 % are affordable nowhere: FSR at origin
        "suppress": {"0.01": 0.9, "0.1": 0.3},
        "suppress_always": {"0.01": 1.0, "0.1": 0.2},
    }
    assert found.adversaries["suppress"].within["0.1"].chosen == ("suppress@3", "suppress@3")
    assert found.worst["L1"].within["0.1"].fsr == 0.2 and found.worst["L1"].within["0.01"].fsr == 0.9
    assert found.worst["L3"].within["0.1"].price == pytest.approx(0.043)


def test_the_removal_price_is_a_bracket(store):
    rows = rows_of(store)
    strong, weak = rows["strong"].removal, rows["weak"].removal
    assert (strong.long.low, strong.long.high) == pytest.approx((0.03, 0.043))
    assert (strong.short.low, strong.short.high) == pytest.approx((0.06, 0.086))
    assert (weak.long.low, weak.long.high) == pytest.approx((0.0, 0.002))
    assert rows["base"].removal.long is None, "nobody claims the base"


def test_prices_are_the_base_s_at_run_time_and_a_row_s_own_where_weights_change(store):
    found = rows_of(store)["strong"].removal.conditions
    assert (found["suppress@3"].long, found["suppress@3"].price_of) == (pytest.approx(0.03), "base")
    # The largest of responses, 5 %, and text, 12 %.
    assert (found["merge@0.3"].long, found["merge@0.3"].price_of) == (pytest.approx(0.12), None)
    assert found["merge@0.3"].short == pytest.approx(0.4)


def test_refusals_cost_both_products(store):
    for seed in SEEDS:
        price(store, "base", "suppress@1", refused=1, text=0.0, seed=seed)
    found = rows_of(store)["strong"].removal.conditions["suppress@1"]
    assert (found.long, found.short) == (0.25, 0.25)


def test_not_reached_is_censored(store):
    attacked(store, "strong", dict.fromkeys(SAMPLERS, 1.0), merged=1.0)
    found = rows_of(store)["strong"].removal
    assert found.long.high is None and csv_of(store)["strong"]["removal price, long"] == "> 25 %"


def test_a_price_beyond_the_limit_is_censored_and_never_shown_as_the_largest_tried(store):
    attacked(store, "strong", dict.fromkeys(SAMPLERS, 1.0), merged=0.0)
    for seed in SEEDS:
        price(store, "strong", "merge@0.3", text=0.3, seed=seed)
    assert csv_of(store)["strong"]["removal price, long"] == "> 25 %"


def test_one_seed_is_marked_oracle(tmp_path):
    store = Store(tmp_path)
    priced(store, [42])
    attacked(store, "strong", {name: p for name, (_, p) in SAMPLERS.items()}, [42])
    line = csv_of(store)["strong"]
    assert rows_of(store)["strong"].removal.thief == "oracle"
    assert line["removal price, long"] == "3.0–4.3 % (oracle)"
    assert line["FSR@10 %: suppress"] == "30.0 [6.7, 65.2] (oracle)"


def test_a_further_seed_with_fewer_attacks_opens_no_gap(store):
    """Its FSR is pooled; the thief chooses among the same doses for every seed, at those that have them all."""
    alone = rows_of(store)["strong"].removal
    fsr(store, "base", "origin", [0.0] * 10, seed=44)
    fsr(store, "strong", "origin", [1.0] * 10, seed=44)
    fsr(store, "strong", "suppress@3", [0.9] * 10, seed=44)
    rows = rows_of(store)
    found = rows["strong"].removal
    assert (found.thief, found.missing, found.worst) == ("blind", (), alone.worst) and found.long == alone.long
    assert rows["strong"].conditions["origin"].n == 30
    assert found.conditions["suppress@3"].fsr == pytest.approx((0.3 + 0.3 + 0.9) / 3)


def test_an_attack_that_failed_at_a_further_seed_is_a_gap(store):
    write(store, "strong", "suppress@3", "fsr", reason="killed", seed=43)
    found = rows_of(store)["strong"].removal
    assert found.thief == "blind" and found.missing == ("suppress@3",)


def test_figures_as_they_are_written(store):
    line = csv_of(store)["strong"]
    assert line["removal price, long"] == "3.0–4.3 %" and line["removal price, short"] == "6.0–8.6 %"
    assert line["FSR@10 %: suppress"] == "30.0 [11.9, 54.3]" and line["worst L1"] == "20.0 [5.7, 43.7]"
    assert csv_of(store)["weak"]["removal price, long"] == "0.0–0.2 %"
    assert csv_of(store)["base"]["removal price, long"] == "–"


# Gaps.


@pytest.mark.parametrize("metric", ["fsr", "price"])
def test_a_failed_cell_leaves_a_gap_and_never_a_robust_row(store, metric):
    """Its one adversary that removes anything failed: what is left is no robustness."""
    attacked(store, "strong", dict.fromkeys(SAMPLERS, 1.0), merged=0.0)
    write(store, "strong", "merge@0.3", metric, reason="out of memory", seed=43)
    row, line = rows_of(store)["strong"], csv_of(store)["strong"]
    assert row.removal.missing == ("merge@0.3",)
    assert line["removal price, long"] == "incomplete" and line["FSR@10 %: merge"] == "incomplete"
    assert line["worst L3"] == "100.0 [83.2, 100.0] (incomplete)" and line["worst L1"] == "100.0 [83.2, 100.0]"
    assert line["removal rank"].endswith("incomplete")


def test_a_gap_below_the_price_that_was_found_opens_the_bracket(store):
    write(store, "strong", "suppress@3", "fsr", reason="out of memory", seed=43)
    assert csv_of(store)["strong"]["removal price, long"] == "≤ 4.3 % (incomplete)"


def test_a_price_that_failed_on_the_base_is_a_gap_of_every_row(store):
    write(store, "base", "suppress@3", "price", reason="out of memory", seed=42)
    rows = rows_of(store)
    assert rows["strong"].removal.missing == rows["weak"].removal.missing == ("suppress@3",)


def test_a_condition_that_only_another_row_has_is_missing(store):
    for seed in SEEDS:
        fsr(store, "weak", "suppress@5", [0.0] * 10, seed=seed)
        price(store, "base", "suppress@5", long=0.01, seed=seed, text=0.0)
    assert rows_of(store)["strong"].removal.missing == ("suppress@5",)
    assert rows_of(store)["weak"].removal.missing == ()


def test_the_base_is_not_merged_with_itself(store):
    assert rows_of(store)["base"].removal.missing == ()


def test_a_model_that_knows_no_answers_has_no_short_price(store):
    for seed in SEEDS:
        for condition in ("origin", *SAMPLERS):
            long = SAMPLERS.get(condition, (0.0,))[0]
            price(store, "base", condition, long=long, short=0.99, text=0.0, seed=seed)
    found = rows_of(store)["strong"].removal
    assert found.conditions["suppress@3"].short is None and found.missing == ()
    line = csv_of(store)["strong"]
    assert line["removal price, long"] == "3.0–4.3 %"
    # The merge, 40 %, is all that has one: nothing that is affordable was tried.
    assert line["removal price, short"] == "incomplete"
    for seed in SEEDS:
        for condition in ("origin", "merge@0.3"):
            price(store, "strong", condition, short=0.99, text=0.0, seed=seed)
            price(store, "weak", condition, short=0.99, text=0.0, seed=seed)
    assert csv_of(store)["strong"]["removal price, short"] == "–"


def test_what_had_no_effect_is_no_resistance(store):
    """Weights can be rescaled so that what is done to them means nothing."""
    for seed in SEEDS:
        for method, change in (("base", 0.1), ("strong", 1e-6), ("weak", 0.1)):
            proof = {"weights_digest": "d", "modification": {"sparsity": 0.5, "relative_change": change}}
            fsr(store, method, "ria@0.5", [1.0] * 10, seed=seed, proof=proof)
            price(store, method, "ria@0.5", text=0.02, seed=seed)
    rows = rows_of(store)
    assert rows["strong"].removal.missing == ("ria@0.5",) and rows["weak"].removal.missing == ()


# Rank.


def pooled(store, *methods):
    """The harmless figures that a rank needs, on the seeds of the attacks."""
    utility(store, "base", [True] * 8 + [False] * 2, 10.0)
    for method in methods:
        harmless(store, method)


def test_rank_by_the_price_of_each_fingerprint(store):
    pooled(store, "strong", "weak")
    rows = rows_of(store)
    # All twenty fingerprints: 3 % (suppress@3 halves them) against 0.2 %.
    assert (rows["strong"].removal.rank, rows["weak"].removal.rank) == (1, 2)
    assert rows["base"].removal.rank is rows["base"].removal.out is None


def test_a_difference_of_less_than_a_point_is_a_tie(store):
    pooled(store, "strong", "weak")
    attacked(store, "weak", dict(zip(SAMPLERS, (0.9, 0.3, 0.0), strict=True)))
    assert [rows_of(store)[name].removal.rank for name in ("strong", "weak")] == [1, 1]


def test_what_answers_everything_is_shown_and_not_ranked(store):
    pooled(store, "strong", "weak")
    near(store, "strong", [0.5] * 10, 5)
    found = rows_of(store)
    assert found["strong"].removal.rank is None and found["strong"].removal.out == "near 50.0 %"
    assert csv_of(store)["strong"]["removal price, long"] == "3.0–4.3 %", "shown all the same"
    assert found["weak"].removal.rank == 1


def test_what_nobody_can_claim_is_not_robust(store):
    """Half of next to nothing is never reached."""
    for seed in SEEDS:
        for condition in ("origin", *SAMPLERS, "merge@0.3"):
            fsr(store, "weak", condition, [0.05] * 10, seed=seed)
    pooled(store, "strong", "weak")
    found = rows_of(store)["weak"].removal
    assert (found.long.high, found.rank, found.out) == (0.0, None, "no claim at origin")


# In every format, and only where somebody attacked.


def test_without_an_attack_there_is_no_removal_table(tmp_path):
    rows = list(rows_of(grid(tmp_path)).values())
    for kind in ("md", "csv", "html", "latex"):
        assert "removal" not in render(rows, kind).lower(), kind
    assert "removal" not in json.loads(render(rows, "json"))["rows"][0]


def test_every_format_has_it(store):
    rows = list(rows_of(store).values())
    text = re.sub(" +", " ", render(rows, "md"))
    assert "| FSR@10 %: suppress_always |" in text and "| 3.0–4.3 % | 6.0–8.6 % |" in text
    # On a terminal, the price in the first table, and each attack with its own in the second.
    text = re.sub(" +", " ", summary(rows))
    assert re.search(r"\n1 strong \S+ .* 3\.0–4\.3 ", text) and "suppress@3 3.0 0.0 30.0 0.0" in text
    assert "worst L3, ≤ 10 % paid 0.0 " in text
    html = render(rows, "html")
    assert '<table id="removal"' in html and "3.0–4.3 %" in html
    assert "by suppress@3 at a price of 3.0 %" in html, "on hover"
    (found,) = (row for row in json.loads(render(rows, "json"))["rows"] if row["method"] == "strong")
    assert found["removal"]["long"] == pytest.approx({"low": 0.03, "high": 0.043})
    assert found["removal"]["worst"]["L1"]["within"]["0.1"]["fsr"] == 0.2
    latex = render(rows, "latex")
    assert latex.count(r"\begin{table}") == 2 and r"suppress\_always & " in latex and r"3.0--4.3 \%" in latex


def test_attacks_stand_in_no_other_table(store):
    text = render(list(rows_of(store).values()), "md")
    drift = text.split("## Removal")[0]
    assert "suppress" not in drift and "merge@" not in drift and "Further conditions" not in drift
    fsr(store, "strong", "finetune_math+nf4", [1.0] * 10)
    assert "finetune_math+nf4" in render(list(rows_of(store).values()), "md").split("## Removal")[0]


def test_the_page_shows_what_each_dose_does(store):
    html = render(list(rows_of(store).values()), "html")
    drift, part = html.split('<h3 id="method-strong">')[1].split("<h3 ")[0].split("What adversaries leave", 1)
    line = re.search(r'<th scope="row">suppress@3</th>(.*?)</tr>', part)[1]
    assert re.findall("<td>(.*?)</td>", line) == ["L1", "30.0 (11.9 to 54.3)", "3.0 (3.0 to 3.0)", "6.0 (6.0 to 6.0)"]
    assert '<th scope="row">nf4</th>' in drift and "suppress" not in drift.split("</table>")[-2]


# Impossible figures.


def at(condition="suppress@1"):
    return f"record tiny/nlf/base/seed-42/{condition}/price: "


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ({"responses": {"perplexity": 7.0, "tokens": 40, "n": 4}}, "responses: perplexity 7.0 is not that of its"),
        ({"responses": {"tokens": 40, "n": 4}}, "price is not what its metric gives"),
        ({"responses": None}, "price is not what its metric gives"),
        ({"answers": {"accuracy": 0.6, "n": 4}}, "answers: accuracy 0.6 is not that of its queries, 0.5"),
        ({"refused": 0.5}, "refused: share 0.5 is not that of its queries, 0"),
        ({"text": {"perplexity": 1.0, "tokens": 1, "n": 1}}, "text: share .* without an item|text without an item"),
        ({"further": 1.0}, "price with a figure 'further'"),
    ],
)
def test_a_price_that_does_not_follow_from_its_items_is_refused(store, result, what):
    price(store, "base", "suppress@1", result=result)
    with pytest.raises(InputError, match=at() + what):
        rows_of(store)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"channel": "answers", "index": 0, "probability": 1.5}, "probability of an answer 1.5 is outside"),
        ({"channel": "answers", "index": 1, "probability": 0.5}, "item 1 of channel 'answers'"),
        ({"channel": "luck", "index": 0, "value": 0.5}, "item 0 of channel 'luck'"),
        ({"channel": "responses", "index": 9, "loss": -1.0, "tokens": 10}, "loss of an item of responses -1.0"),
        ({"channel": "responses", "index": 9, "loss": 1e6, "tokens": 10}, "loss of an item of responses 1000000.0"),
        ({"channel": "responses", "index": 9, "loss": 1.0, "tokens": 10}, "its responses are not those to the"),
        ({"channel": "refused", "index": 9, "refused": 1}, "refused of a query is neither true nor false"),
    ],
)
def test_an_item_that_cannot_be_is_refused(store, change, what):
    path = store.record_path(Cell("tiny", "nlf", "base", 42, "suppress@1", "price"))
    record = json.loads(path.read_text())
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    if change["channel"] == "answers" and change["index"] == 0:
        lines = [line for line in lines if (line["channel"], line["index"]) != ("answers", 0)]
    write(store, "base", "suppress@1", "price", record["result"], [*lines, change])
    with pytest.raises(InputError, match=at() + what):
        rows_of(store)


def test_prices_of_other_items_are_refused(store):
    path = store.record_path(Cell("tiny", "nlf", "base", 42, "suppress@1", "price"))
    record = json.loads(path.read_text())
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    answers = [line for line in lines if line["channel"] == "answers"]
    fewer = [line for line in lines if line not in answers[:1]]
    write(store, "base", "suppress@1", "price", record["result"] | {"answers": {"accuracy": 0.498, "n": 3}}, fewer)
    with pytest.raises(InputError, match=at() + "price: the items of channel 'answers' are not those"):
        rows_of(store)
