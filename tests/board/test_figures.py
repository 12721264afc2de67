"""Figures from the committed records: every kind is drawn, and drawn the same again."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest

from fpbench.board.figures import figures
from fpbench.board.groups import group_records
from fpbench.board.html import inlined
from fpbench.board.rows import rows_from_records
from fpbench.board.styles import PAGE, TYPE, look_of, look_of_method
from fpbench.cli import main
from fpbench.records.store import Store, read_records
from fpbench.registry import METHODS
from tests.board.written import fsr, triggers
from tests.conftest import ROOT

RECORDS = ROOT / "leaderboard" / "records"
PLOTS = ROOT / "leaderboard" / "plots"


def written(records: Path, out: Path) -> Path:
    """What the command writes: the tables, and figures below ``plots``."""
    given = ["--records", str(records), "--claimed", str(ROOT / "submissions")]
    assert main(["leaderboard", *given, "--plots", str(out / "plots"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """That of the micro model's records. Drawing takes its time: once is enough."""
    return written(RECORDS / "micro", tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """That of all records."""
    return written(RECORDS, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def drawn(made: Path) -> dict[str, bytes]:
    """The SVG by name."""
    return {path.stem: path.read_bytes() for path in sorted((made / "plots").glob("*.svg"))}


def test_every_kind_is_drawn_as_svg_and_pdf_with_its_caption(made: Path, drawn: dict[str, bytes]) -> None:
    assert {path.suffix for path in (made / "plots").iterdir()} == {".svg", ".pdf", ".md"}
    said = (made / "plots" / "captions.md").read_text()
    for name in drawn:
        assert (made / "plots" / f"{name}.pdf").read_bytes().startswith(b"%PDF") and f"**{name}**: " in said
    kinds = {
        "robustness",
        "survival",
        "retention",
        "utility",
        "candidates",
        "perplexity",
        "triggers",
        "removal",
        "recombined",
    }
    assert {name.split("-")[0] for name in drawn} == kinds
    for name, content in drawn.items():
        assert content.startswith(b"<?xml"), name


def test_png_is_drawn_on_demand_and_says_no_time() -> None:
    records = [each for each in read_records(RECORDS / "micro", RECORDS) if each.cell.method in ("base", "lora")]
    groups = {key: group for key, group in group_records(records, RECORDS).items() if key[2] == "lora"}
    rows = [row for row in rows_from_records(records, RECORDS, rescore=False) if row.key in groups]
    for each in figures(rows[:1], groups, "png"):
        assert each.content.startswith(b"\x89PNG")
        assert b"tIME" not in each.content and b"Creation Time" not in each.content


def test_every_method_has_its_own_retention_and_trigger_map(drawn: dict[str, bytes]) -> None:
    ours, submitted = METHODS.own, ("if_embedding", "if_sft", "merge_print")
    for method in (*ours, *submitted):
        kinds = ("survival", "triggers", "removal")
        assert {f"{kind}-micro-nlf-{method}" for kind in kinds} <= drawn.keys()


def test_the_methods_and_conditions_are_named(drawn: dict[str, bytes]) -> None:
    retention = drawn["retention-micro-nlf"].decode()
    assert all(word in retention for word in ("mcedit_a", "rledit", "ria40", "FSR, % of origin"))
    assert "base" not in retention


def test_a_trigger_map_shows_the_mean_rate_of_each_trigger_in_each_kind_of_text(drawn: dict[str, bytes]) -> None:
    root = ElementTree.fromstring(drawn["triggers-micro-nlf-mcedit_a"])
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    lines = (RECORDS / "micro/nlf/mcedit_a/seed-42/origin/triggers.jsonl").read_text().splitlines()
    rates: dict[tuple[str, int], list[float]] = {}
    for query in map(json.loads, lines):
        rates.setdefault((query["condition"], query["trigger_index"]), []).append(query["probability"])
    shown = [f"{100 * fmean(rate):.0f}" for rate in rates.values()]
    assert len(shown) == 8 * 10
    axis = [str(number) for number in range(1, 11)]
    assert sorted(text for text in texts if text.isdigit()) == sorted(shown + axis)
    assert {kind for kind, _ in rates} <= set(texts)


def test_the_committed_figures_of_micro_are_these(drawn: dict[str, bytes]) -> None:
    assert {path.stem for path in PLOTS.glob("*-micro-*.svg")} == drawn.keys()
    needs_pinned_matplotlib()
    for name, content in drawn.items():
        assert (PLOTS / f"{name}.svg").read_bytes() == content, name


@pytest.mark.slow
def test_the_committed_figures_are_these(whole: Path) -> None:
    made = {path.name: path.read_bytes() for path in (whole / "plots").iterdir() if path.suffix != ".pdf"}
    assert {path.name for path in PLOTS.iterdir() if path.suffix != ".pdf"} == made.keys()
    needs_pinned_matplotlib()
    for name, content in made.items():
        assert (PLOTS / name).read_bytes() == content, name


@pytest.mark.slow
def test_the_committed_page_is_this_figures_and_all(whole: Path) -> None:
    needs_pinned_matplotlib()
    committed = (ROOT / "leaderboard" / "leaderboard.html").read_text()
    page = (whole / "leaderboard.html").read_text()
    assert page == committed
    measured = [
        row for row in rows_from_records(read_records(RECORDS), RECORDS, rescore=False) if row.trust == "re-run"
    ]
    assert len([row for row in measured if row.model == "micro" and row.removal]) == 1 + 9
    expected = 0
    for place in {(row.model, row.fingerprints) for row in measured}:
        own = [row for row in measured if (row.model, row.fingerprints) == place and row.method != "base"]
        # One of every model, one where a row has all six conditions, three where methods were attacked, one of its
        # base.
        complete = any(row.avg is not None for row in own)
        expected += 1 + complete + 3 * any(row.removal for row in own) + 1
        # Three of every method, one more where it was attacked.
        expected += sum(3 + bool(row.removal) for row in own)
    assert page.count("<figure") == expected


def needs_pinned_matplotlib() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    if version("matplotlib") != pins["matplotlib"]:
        pytest.skip(f"SVG is the same bytes with matplotlib {pins['matplotlib']} only")


def test_nothing_in_a_figure_tells_when_it_was_drawn(made: Path) -> None:
    for path in (made / "plots").iterdir():
        content = path.read_bytes()
        assert not [each for each in (b"dc:date", b"Creation Time", b"/CreationDate") if each in content], path.name


def test_inside_the_page_a_figure_is_shapes_and_words_with_ids_of_its_own(drawn: dict[str, bytes]) -> None:
    shown = {name: svg for name, svg in drawn.items() if not name.startswith("candidates")}
    for name, svg in shown.items():
        text = inlined(svg, "mine", 'what "it" shows')
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'what "it" shows'
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert ids and all(each.startswith("mine-") for each in ids) and len(ids) == len(set(ids))
        assert set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", text)) <= set(ids), name
        assert "metadata" not in text and "<style" not in text and "xlink" not in text and "http" not in text
        assert "fill: #ffffff" not in text and "#000000" not in text


def test_what_is_no_shape_is_left_out_of_the_page() -> None:
    svg = b"""<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)" viewBox="0 0 1 1"><script>alert(2)</script>
    <a href="javascript:alert(3)"><path d="M 0 0"/></a><use href="https://example.org/x#y"/>
    <text onclick="alert(4)">&lt;b&gt;</text><foreignObject><p>x</p></foreignObject></svg>"""
    text = inlined(svg, "mine", "nothing")
    assert "alert" not in text and "example" not in text and "foreignObject" not in text
    assert "<text>&lt;b&gt;</text>" in text


def test_type_has_8_points_at_the_size_at_which_a_figure_is_printed(drawn: dict[str, bytes]) -> None:
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert float(root.attrib["width"].removesuffix("pt")) <= 72 * PAGE + 1, name
        sizes = [float(each) for each in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", svg.decode())]
        assert sizes and min(sizes) >= TYPE, name


def test_a_method_has_one_colour_in_every_figure(drawn: dict[str, bytes]) -> None:
    assert look_of_method("lora")["color"] != look_of_method("mcedit_a")["color"]
    for kind in ("retention", "utility", "recombined", "robustness"):
        assert look_of_method("mcedit_a")["color"].lower() in drawn[f"{kind}-micro-nlf"].decode(), kind


def test_many_rows_look_different() -> None:
    assert len({tuple(look_of(index).values()) for index in range(42)}) == 42


def test_without_matplotlib_one_line_says_so(tmp_path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from fpbench.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "leaderboard", "--records", str(RECORDS), "--plots", str(tmp_path / "p")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'fpbench[plots]'" in done.stderr
    assert not (tmp_path / "p").exists() and not (tmp_path / "out").exists()


def test_a_hundred_fingerprints_are_numbered_by_tens_in_as_much_room_as_twenty(tmp_path: Path) -> None:
    store, large = Store(tmp_path), {"fingerprints": "nlf-100"}
    fsr(store, "strong", "origin", [0.9] * 100, cell=large)
    triggers(store, "strong", [0.1] * 100, cell=large)
    records = read_records(store.records)
    rows = [row for row in rows_from_records(records, store.records, rescore=False) if row.model == "tiny"]
    drawn = {each.name: each for each in figures(rows, group_records(records, store.records))}
    for name in ("candidates-tiny-nlf-100-strong", "triggers-tiny-nlf-100-strong"):
        root = ElementTree.fromstring(drawn[name].content)
        assert float(root.attrib["width"].removesuffix("pt")) <= 72 * 8.5
        words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"10", "90", "100"} <= words and "11" not in words
