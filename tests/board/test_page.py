"""The committed page in a real browser: headless Chromium, driven by Playwright, judged by axe-core.

One test of it is quick, the others are slow: run them after a change of the page.
"""

import csv
import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fpbench.board.html import tables_of
from fpbench.board.leaderboard import leaderboard
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render
from fpbench.records.store import read_records
from tests.board.written import grid
from tests.conftest import ROOT

PAGE = ROOT / "leaderboard" / "leaderboard.html"
RECORDS = ROOT / "leaderboard" / "records"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; the operating system's, as Playwright's own is no package."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root has no sandbox of its own.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield launched
        launched.close()


@pytest.fixture
def view(browser) -> Iterator[Any]:
    """Opens a page; at the end of the test it must have asked for nothing else and logged nothing."""
    opened = []

    def open_page(path: Path = PAGE, **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        seen: dict[str, list[str]] = {"requests": [], "console": []}
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on("console", lambda message: seen["console"].append(message.text))
        page.on("pageerror", lambda error: seen["console"].append(str(error)))
        page.goto(path.as_uri())
        opened.append((page, path, seen))
        return page

    yield open_page
    for page, path, seen in opened:
        assert seen == {"requests": [path.as_uri()], "console": []}
        page.close()


def column(page: Any, name: str) -> list[str]:
    """Texts of a column of the first table, hidden rows left out; of the method the name alone."""
    names = page.locator("#overview thead th").all_inner_texts()
    number = next(place for place, each in enumerate(names, 1) if each.startswith(name))
    texts: list[str] = page.eval_on_selector_all(
        f"#overview tbody tr:not([hidden]) > :nth-child({number})", "cells => cells.map(cell => cell.innerText)"
    )
    return [text.splitlines()[0] for text in texts]


def header(page: Any, name: str) -> Any:
    return page.locator("#overview thead button", has_text=name).first


ROWS = rows_from_records(read_records(RECORDS), RECORDS, rescore=False)
MEASURED = [row for row in ROWS if row.trust != "reported"]


def values(texts: list[str]) -> list[float]:
    return [float(text.split(" ")[0]) for text in texts if text != "–"]


@pytest.mark.slow
def test_a_header_sorts_by_mouse(view):
    page = view()
    before = column(page, "AVG")
    header(page, "AVG").click()
    largest = column(page, "AVG")
    assert values(largest) == sorted(values(before), reverse=True)
    header(page, "AVG").click()
    smallest = column(page, "AVG")
    assert values(smallest) == sorted(values(before))
    missing = before.count("–")
    assert missing and largest[-missing:] == smallest[-missing:] == ["–"] * missing
    assert page.locator("#overview th[aria-sort]").evaluate_all("all => all.map(each => each.ariaSort)") == [
        "ascending"
    ]
    header(page, "method").click()
    assert column(page, "method") == sorted(column(page, "method"))


@pytest.mark.slow
def test_a_header_sorts_by_keyboard(view):
    page = view()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").startswith("AVG"):
            break
    assert page.evaluate("document.activeElement.closest('th').scope") == "col"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus can be seen"
    page.keyboard.press("Enter")
    assert values(column(page, "AVG")) == sorted(values(column(page, "AVG")), reverse=True)
    page.keyboard.press("Space")
    assert values(column(page, "AVG")) == sorted(values(column(page, "AVG")))


@pytest.mark.slow
def test_ranks_sort_as_numbers(view, tmp_path):
    page = view()
    header(page, "rank").click()
    header(page, "rank").click()
    shown = column(page, "rank")
    ranks = [text for text in shown if text.isdigit()]
    assert shown[: len(ranks)] == sorted(ranks, key=int), "rows without a rank come last"


@pytest.mark.slow
def test_filters_hide_rows_sections_and_columns(view):
    from playwright.sync_api import expect

    page = view()
    status = page.locator("[role=status]")
    assert status.inner_text() == f"{len(MEASURED)} of {len(ROWS)} rows", "measured by default"
    assert not page.locator("#compared").is_visible()
    page.check("input[name=reported]")
    assert status.inner_text() == f"{len(ROWS)} of {len(ROWS)} rows" and page.locator("#compared").is_visible()
    page.select_option("select[name=model]", "Qwen/Qwen3-8B")
    assert page.locator("article:visible").count() == 0 and len(column(page, "method")) == 7
    page.select_option("select[name=model]", "")
    page.uncheck("input[name=reported]")
    page.select_option("select[name=fingerprints]", "nlf")
    own = [row for row in MEASURED if row.fingerprints == "nlf"]
    assert len(own) >= 8
    assert len(column(page, "method")) == page.locator("article:visible").count() == len(own)
    page.select_option("select[name=condition]", "ria40")
    shown = page.locator("#detectability thead th:visible").all_inner_texts()
    assert [each.split()[0] for each in shown] == ["method", "AVG", "ria40", "greedy"]
    page.locator("article summary").first.click()
    assert page.locator("article").first.locator("tbody tr[data-condition]:visible th").all_inner_texts() in (
        ["ria40"],
        [],
    )
    page.locator("button[type=reset]").click()
    expect(status).to_have_text(f"{len(MEASURED)} of {len(ROWS)} rows")


@pytest.mark.slow
def test_a_search_and_the_filters_stand_in_the_address(view):
    page = view()
    page.fill("input[name=q]", "mcedit micro")
    assert column(page, "method") == ["mcedit_a", "mcedit_r"] and page.url.endswith("#?q=mcedit+micro")
    page.locator("#comparison summary").click()
    page.select_option("select[name=one]", "micro · nlf · lora")
    again = page.context.browser.new_page()
    again.goto(page.url)
    assert column(again, "method") == ["mcedit_a", "mcedit_r"]
    assert again.locator("#pairs thead th").all_inner_texts()[1] == "lora" and again.locator("#pairs").is_visible()
    again.close()


@pytest.mark.slow
def test_two_rows_stand_side_by_side(view):
    page = view()
    page.locator("#comparison summary").click()
    page.select_option("select[name=one]", "micro · nlf · mcedit_a")
    page.select_option("select[name=other]", "micro · nlf · lora")
    lines = page.locator("#pairs tbody tr").evaluate_all("all => all.map(tr => [...tr.cells].map(td => td.innerText))")
    found = {name: (one, other) for name, one, other in lines}
    assert found["AVG"] == ("99.8 [68.8, 100.0]", "100.0 [69.2, 100.0]") and found["removal rank"] == ("1", "2")
    assert {"recombined", "cost", "FSR@10 %: merge"} <= found.keys()


@pytest.mark.slow
def test_what_is_shown_downloads_as_csv(view):
    page = view()
    page.select_option("select[name=model]", "micro")
    with page.expect_download() as waiting:
        page.locator("#csv").click()
    lines = list(csv.DictReader(waiting.value.path().read_text(encoding="utf-8").splitlines()))
    assert [line["method"] for line in lines] == [row.method for row in MEASURED if row.model == "micro"]
    assert float(lines[1]["AVG"]) == MEASURED[[row.model for row in MEASURED].index("micro") + 1].avg


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 900, 1440])
def test_the_headline_is_seen_without_scrolling_sideways(view, width):
    page = view(viewport={"width": width, "height": 900})
    right = page.locator("#overview thead th").evaluate_all("all => all.map(th => th.getBoundingClientRect().right)")
    names = page.locator("#overview thead th").all_inner_texts()
    assert [name.split(" ↑")[0].strip() for name in names[:3]] == ["method", "AVG", "removal price, long"]
    assert right[2] <= width
    assert width < 1440 or page.locator("figure svg").first.bounding_box()["y"] < 900
    page.select_option("select[name=model]", "micro")
    screens = page.evaluate("document.documentElement.scrollHeight") / 900
    assert screens < (8 if width >= 900 else 10), screens


@pytest.mark.slow
def test_heads_and_names_stay_where_they_are(view):
    page = view(viewport={"width": 700, "height": 300})
    scroll = page.locator(".scroll", has=page.locator("#overview"))
    scroll.evaluate("box => box.scrollTo(150, 150)")
    box = scroll.bounding_box()
    name, head = page.locator("#overview tbody th").nth(5), page.locator("#overview thead th").nth(3)
    assert name.bounding_box()["x"] == pytest.approx(box["x"], abs=1)
    assert head.bounding_box()["y"] == pytest.approx(box["y"], abs=1)


@pytest.mark.slow
def test_filters_work_by_keyboard(view):
    page = view()
    page.focus("input[name=reported]")
    page.keyboard.press("Space")
    assert page.locator("[role=status]").inner_text() == f"{len(ROWS)} of {len(ROWS)} rows"


@pytest.mark.slow
def test_reset_brings_the_order_back(view):
    page = view()
    before = column(page, "method")
    header(page, "method").click()
    assert column(page, "method") != before
    page.locator("button[type=reset]").click()
    assert column(page, "method") == before and page.locator("th[aria-sort]").count() == 0


@pytest.mark.slow
def test_intervals_stand_in_the_text_and_on_hover(view):
    place = next(place for place, row in enumerate(ROWS) if row.key == ("micro", "nlf", "alphaedit"))
    cell = view().locator(f"#detectability tbody tr:nth-child({place + 1}) td[data-condition=finetune_math]")
    low, high = (100 * bound for bound in ROWS[place].conditions["finetune_math"].interval)
    assert f"[{low:.1f}, {high:.1f}]" in cell.inner_text()
    assert cell.locator("a").get_attribute("href") == "records/micro/nlf/alphaedit/seed-42/finetune_math/fsr.jsonl"
    assert (RECORDS.parent / cell.locator("a").get_attribute("href")).is_file()
    hover = f"95 % interval over 10 fingerprints: {low:.1f} to {high:.1f} %"
    assert cell.get_attribute("title").startswith(hover)


@pytest.mark.slow
def test_a_method_leads_to_its_section(view):
    page = view()
    page.locator("#overview tbody th a", has_text="mcedit_a").first.click()
    section = page.locator("section.method", has=page.locator("#method-mcedit_a"))
    own = [row for row in MEASURED if row.method == "mcedit_a"]
    assert own and all(row.removal for row in own if row.model == "micro")
    drawn = [each for row in own for each in ("survival", "triggers", "perplexity", *["removal"] * bool(row.removal))]
    assert page.url.endswith("#method-mcedit_a") and section.locator("figure svg").count() == len(drawn)
    section.locator("details.provenance summary").last.click()
    text = section.inner_text()
    for name in ("Cost", "Perplexity of the triggers", "Detectability by condition", "Provenance", "torch 2"):
        assert name in text


@pytest.mark.slow
def test_without_javascript_it_is_a_plain_table(view):
    page = view(java_script_enabled=False)
    assert page.locator("#filters").is_visible() is False and page.locator("thead button").count() == 0
    assert page.locator("#overview tbody tr").count() == len(ROWS)
    assert page.locator("#overview").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_is_as_wide_as_its_window_and_follows_the_scheme(view, scheme, width):
    page = view(color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}").strip("rgb()").split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (ground < ink) == (scheme == "dark")


def faults(page: Any) -> list[Any]:
    """What axe-core finds serious or critical."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    return [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in serious]


@pytest.mark.slow
def test_axe_finds_no_serious_fault_in_a_small_page(view, tmp_path):
    small = tmp_path / "small.html"
    small.write_text(render([*ROWS[:2], *ROWS[-2:]], "html"), encoding="utf-8")
    assert faults(view(small)) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_no_serious_fault(view, scheme, width):
    assert faults(view(color_scheme=scheme, viewport={"width": width, "height": 800})) == []


@pytest.mark.slow
def test_a_contested_method_and_a_failed_cell_are_shown(view, tmp_path):
    store = grid(tmp_path / "run")
    hostile = "<script>document.title = 'taken'</script>"
    (store.records / "contested.toml").write_text(f'strong = "{hostile}"\n')
    leaderboard(store.records, out=tmp_path)
    page = view(tmp_path / "leaderboard.html")
    assert page.title() == "fpbench leaderboard" and page.locator("script").count() == 1
    row = page.locator("#overview tbody tr", has_text="unreliable")
    assert row.count() == 1 and row.locator(".flag").get_attribute("title") == hostile
    assert hostile in page.locator(".contested").inner_text()
    assert "width 172 | not divisible by 32" in page.locator("section", has=page.locator("#failed")).inner_text()


def test_what_the_browser_shows_is_what_the_rows_hold(view):
    table, *_ = tables_of(ROWS)
    shown = view().eval_on_selector_all(
        "#overview tbody tr", "rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
    )
    texts = [
        [" ".join(filter(None, (each.text, each.aside, *("≡" for _ in each.answers)))) for each in cells]
        for _, cells in table.lines
    ]
    assert [[" ".join(text.split()) for text in line] for line in shown] == texts
