"""The page as text: complete without figures, nothing that submitters wrote acts, nothing outside is named."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fpbench import __released__, __version__
from fpbench.board.escaping import visible
from fpbench.board.figures import figures
from fpbench.board.groups import group_records
from fpbench.board.latex import latex_tables
from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render, summary
from fpbench.records.record import Record
from fpbench.records.store import Store
from tests.board.written import MODIFIED, fsr, write

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "`x` | **b** [c](javascript:alert(3)) <!-- $y$",
    "\\input{x} 50% & #1 ~ ^ _ {a}",
    "=1+1\u202egnp\u200f\x1b[31m",
    "{{ 7 * 7 }}{% raw %}",
    "+cmd|'x'!A1",
]


PAPER = "https://arxiv.org/abs/2509.03122"


class Parsed(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)


def without_figures(text):
    return re.sub(r"<figure.*?</figure>\n", "", text, flags=re.S)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Rows and figures of records in which submitters wrote hostile text wherever they write."""
    store = Store(tmp_path_factory.mktemp("hostile"))
    for name in HOSTILE:
        cell = {"model": name, "fingerprints": name}
        provenance = {"profile": name, "packages": {name: name}, "git": {"commit": name}}
        for condition in ("origin", name, *MODIFIED[1:]):
            fsr(store, name, condition, [0.5] * 4, cell=cell, provenance=provenance)
        write(store, name, MODIFIED[0], "fsr", reason=f"{name}\x00", cell=cell)
    quoted = [json.dumps(name) for name in HOSTILE]
    (store.records / "contested.toml").write_text("".join(f"{name} = {name}\n" for name in quoted))
    # Not read as a store is, where a name with a slash has no place.
    paths = sorted(store.records.rglob("*.json"))
    records = [Record.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    # JSON can hold a lone surrogate, UTF-8 cannot.
    records = [replace(each, reason=f"{each.reason}\ud800") if each.reason else each for each in records]
    rows = rows_from_records(records, store.records, rescore=False)
    few = [row for row in rows if row.method in HOSTILE[::2]]  # drawing takes its time
    return rows, figures(few, group_records(records, store.records))


@pytest.mark.parametrize("drawn", [False, True], ids=["plain", "with figures"])
def test_nothing_that_submitters_wrote_acts(hostile, drawn):
    rows, drawings = hostile
    text = render(rows, "html", drawings if drawn else ())
    page = Parsed(text)
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    assert not {"img", "iframe", "link", "object", "image", "foreignobject", "base"} & set(page.tags)
    assert not [each for each in page.attributes if each[1].startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    # To the page itself, to files beside it, and to the paper; what submitters wrote is quoted in them.
    assert all(re.fullmatch(rf"#.*|records/[\w.%+@/~-]+|leaderboard\.csv|{re.escape(PAPER)}", value) for value in links)
    assert not [character for character in text if visible(character) != character and character not in "\n"]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in links if value.startswith("#")]
    assert targets and set(targets) <= set(ids)


def test_all_that_submitters_wrote_is_shown(hostile):
    rows, _ = hostile
    words = " ".join(Parsed(render(rows, "html")).words)
    for name in HOSTILE:
        assert visible(name) in words, name


def test_the_page_is_the_same_but_for_its_figures(hostile):
    rows, drawings = hostile
    assert drawings
    assert without_figures(render(rows, "html", drawings)) == render(rows, "html")


def test_figures_are_named_after_what_they_show_and_nothing_else(hostile):
    _, drawings = hostile
    names = [each.name for each in drawings]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[A-Za-z0-9_.+-]+", name) for name in names)


def test_markdown_and_terminal_keep_it_in_its_cell(hostile):
    rows, _ = hostile
    table = render(rows, "md").split("## Detectability")[1].split("## Harm")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[: 2 + len(HOSTILE)]}) == 1
    assert not re.search(r"(?<!\\)<(script|img|!--)|(?<!\\)\[c|(?<!\\)`x|(?<!\\)\*\*b", render(rows, "md"))
    for text in (render(rows, "md"), summary([row for row in rows if row.trust != "reported"])):
        assert not re.search("[\u202e\u200f\x1b\x00]", text)


@pytest.mark.parametrize("kind", ["csv", "wide"])
def test_csv_holds_no_formula(hostile, kind):
    rows, _ = hostile
    for line in csv.reader(io.StringIO(render(rows, kind))):
        for cell in line:
            assert not re.match(r"[=@\t\r]|[+-]\D", cell), cell


def test_json_holds_it_as_it_is(hostile):
    rows, _ = hostile
    read = json.loads(render(rows, "json").encode())["rows"]
    assert {row["method"] for row in read} >= set(HOSTILE)
    assert read[0]["failed"][0]["reason"].endswith("\x00\ud800")


def test_latex_keeps_its_columns_and_commands(hostile):
    rows, _ = hostile
    text = latex_tables([row for row in rows if row.trust != "reported"])
    assert "\\input" not in text and text.count(r"\begin{table}") == len(HOSTILE)
    for line in text.splitlines():
        if line.endswith(r" \\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 11, line
        assert not re.search(r"(?<!\\)[#$%](?!-|\\Delta)", line.replace(r"$-$", "").replace(r"$\Delta$", "")) or (
            line.startswith("%")
        ), line


def test_only_its_own_script_may_run_and_nothing_may_be_fetched():
    text = render(rows_from_records([], None, rescore=False), "html")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy
    assert "http://" not in text and text.count("https://") == 1 and f'<a href="{PAPER}">' in text


def test_the_page_names_the_day_of_its_version_and_no_other():
    text = render(rows_from_records([], None, rescore=False), "html")
    page = Parsed(text)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("time", "datetime")] == [__released__]
    assert f"fpbench {__version__} of {__released__}, protocol 2" in " ".join("".join(page.words).split())
    assert set(re.findall(r"20\d\d-\d\d-\d\d", text)) == {__released__}  # nothing tells when it was written


def test_tables_are_tables():
    page = Parsed(render(rows_from_records([], None, rescore=False), "html"))
    assert page.tags.count("table") == page.tags.count("caption") == page.tags.count("thead") > 0
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert set(scopes) == {"col", "row"} and len(scopes) == page.tags.count("th")
