"""The figures of removal, from records that are written down: what stands in them, and where."""

import re
import shutil
from itertools import combinations
from xml.etree import ElementTree

import pytest

from fpbench.board.figures import figures
from fpbench.board.groups import group_records
from fpbench.board.removal_figures import CAPTIONS, heat_map, price_curve, robustness, trade_off
from fpbench.board.rows import rows_from_records
from fpbench.board.styles import saved, styled
from fpbench.board.tables import render
from fpbench.records.store import Store, read_records
from tests.board.written import ATTACK_SEEDS, SAMPLERS, attacked, attacked_grid, grid, write
from tests.conftest import ROOT

COMMITTED = ROOT / "leaderboard" / "records"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("removal")
    attacked_grid(folder)
    return folder


@pytest.fixture
def store(written, tmp_path) -> Store:
    return Store(shutil.copytree(written, tmp_path / "run"))


def rows_of(store):
    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    return {row.method: row for row in rows if row.trust != "reported"}


def words(draw, *given):
    """Everything that is written in a figure, in order; ``None`` where there is none."""
    with styled():
        figure = draw("tiny", *given)
        if figure is None:
            return None
        root = ElementTree.fromstring(saved(figure, "svg"))
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_heat_map_has_a_line_an_adversary_and_a_column_a_method(store):
    rows = rows_of(store)
    found = words(heat_map, [rows["strong"], rows["weak"]])
    assert found[:2] == ["strong", "weak"]
    assert found[2:7] == ["merge", "suppress", "suppress_always", "worst up to L1", "worst up to L3"]
    assert found[7:12] == ["100", "30", "20", "20", "20"] and found[12:17] == ["100", "0", "0", "0", "0"]


def test_the_heat_map_marks_gaps(store):
    write(store, "strong", "suppress@3", "fsr", reason="out of memory")
    write(store, "strong", "merge@0.3", "fsr", reason="out of memory")
    found = words(heat_map, [rows_of(store)["strong"]])
    # What is left of suppress is its first dose; nothing is left of merge.
    assert found[6:11] == ["?", "90+", "20", "20+", "20+"]


def test_the_price_curve_names_every_adversary_and_the_removal_price(store):
    found = words(price_curve, rows_of(store)["strong"])
    assert {"merge", "suppress", "suppress_always", "removal price", "blind thief, any adversary"} <= set(found)
    assert "oracle thief, any adversary" in found and "> 25 %" not in found


def test_a_censored_price_has_a_tick(store):
    attacked(store, "strong", dict.fromkeys(SAMPLERS, 1.0), merged=1.0)
    found = words(price_curve, rows_of(store)["strong"])
    assert "> 25 %" in found and "removal price" not in found


def test_what_may_yet_fall_is_incomplete_and_never_censored(store):
    attacked(store, "strong", dict.fromkeys(SAMPLERS, 1.0), merged=1.0)
    write(store, "strong", "suppress@3", "fsr", reason="out of memory")
    found = words(price_curve, rows_of(store)["strong"])
    assert "incomplete" in found and "> 25 %" not in found


def test_the_trade_off_shows_what_was_measured(store):
    rows = list(rows_of(store).values())
    found = words(trade_off, rows)
    assert {"strong", "weak", "AVG FSR of the six, %", "removal price, long, %"} <= set(found)
    assert words(trade_off, [row for row in rows if row.method == "base"]) is None, "not measured there"


def test_names_of_points_of_one_price_do_not_lie_on_each_other():
    rows = rows_from_records(read_records(COMMITTED), COMMITTED, rescore=False)
    shown = [row for row in rows if row.model == "SmolLM2-135M-Instruct" and row.trust == "re-run"]
    with styled():
        figure = robustness("x", shown)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 5 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_without_attacks_there_is_no_figure_of_removal(tmp_path):
    rows = rows_of(grid(tmp_path))
    assert words(heat_map, list(rows.values())) is words(price_curve, rows["strong"]) is None
    assert "removal price, long, %" not in words(trade_off, list(rows.values())), "drift alone"


def test_they_stand_on_the_page_with_their_captions(store):
    records = read_records(store.records)
    groups = {key: group for key, group in group_records(records, store.records).items() if key[2] == "strong"}
    rows = [row for row in rows_from_records(records, store.records, rescore=False) if row.method == "strong"]
    drawn = figures(rows[:1], groups)
    assert {"removal-tiny-nlf", "removal-tiny-nlf-strong", "recombined-tiny-nlf"} <= {each.name for each in drawn}
    page = render(rows[:1], "html", drawn)
    parts = re.split('<section (?:class="method" )?aria-labelledby="', page)[1:]
    sections = {part.partition('"')[0]: part for part in parts}
    assert "Heat map of the FSR that each adversary leaves" in sections["removal-title"]
    assert "words recombined against what survives" in sections["harm-title"]
    assert "FSR that a thief leaves against the price" in sections["method-strong"]
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert sorted(captions) == sorted(each.replace("'", "&#39;") for each in CAPTIONS.values())
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_they_are_the_same_bytes_again(store):
    row = rows_of(store)["strong"]
    with styled():
        first, second = (saved(price_curve("tiny", row), "svg") for _ in range(2))
    assert first == second and len(ATTACK_SEEDS) == 2
