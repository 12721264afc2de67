"""Data sources: local files, bundled files and the hub's names."""

import hashlib
import json
from pathlib import Path

import pytest

from fpbench import data
from fpbench.data import digest, parse, read_rows, read_text, read_texts, require_fields
from fpbench.errors import InputError
from fpbench.hub.download import HubSource
from fpbench.micro import DATA

WIKI = " \n = One Ship = \n \n It sailed . \n = = Crew = = \n \n Nine men . \n \n = Two = \n \n It sank . \n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_rows_of_each_kind(tmp_path: Path) -> None:
    rows = [{"q": "a\u2028b", "n": 1}, {"q": "é", "n": 2}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_rows(write(tmp_path, "a.jsonl", lines + "\n\n")) == rows
    assert read_rows(write(tmp_path, "windows.jsonl", lines.replace("\n", "\r\n"))) == rows
    assert read_rows(write(tmp_path, "a.json", json.dumps(rows, indent=1))) == rows
    assert read_rows(write(tmp_path, "a.txt", "one\ntwo\n\n\nthree\n")) == [{"text": "one\ntwo"}, {"text": "three\n"}]


def test_texts_are_split_at_wiki_titles_and_not_at_sections(tmp_path: Path) -> None:
    source = write(tmp_path, "wiki.raw", WIKI)
    first, second = read_texts(source)
    assert first.startswith(" = One Ship = \n") and "= = Crew = =" in first
    assert second == " = Two = \n \n It sank . \n"
    assert read_text(source) == WIKI


def test_texts_of_rows_use_text_or_page(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path, "a.jsonl", '{"text": "x"}\n{"text": "y"}')) == ["x", "y"]
    pages = write(tmp_path, "b.jsonl", '{"page": "x"}\n{"page": "y"}')
    assert read_texts(pages) == ["x", "y"]
    assert read_text(pages) == "x\n\ny"


def test_wikitext_has_the_pages_that_lm_eval_scores(shared: Path) -> None:
    source = str(shared / "data" / "wikitext2" / "wiki.test.raw")
    pages = read_texts(source)
    assert len(pages) == 62  # of EleutherAI/wikitext_document_level
    assert "".join(pages).strip() == read_text(source).strip()


def test_bundled_files_are_found_where_the_package_is() -> None:
    assert parse("bundled:arc.jsonl") == DATA / "arc.jsonl"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:yahma/alpaca-cleaned@12567ca:train", HubSource("yahma/alpaca-cleaned", None, "12567ca", "train")),
        ("hub:allenai/ai2_arc/ARC-Challenge@v1.0:test", HubSource("allenai/ai2_arc", "ARC-Challenge", "v1.0", "test")),
    ],
)
def test_hub_sources_are_parsed(source: str, expected: HubSource) -> None:
    assert parse(source) == expected


@pytest.mark.parametrize(
    "source", ["hub:alpaca@main:x", "hub:a/b:train", "hub:a/b@main", "hub:a/b/c/d@main:x", "bundled:../x", "bundled:"]
)
def test_malformed_sources_are_refused(source: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse(source)


def test_a_hub_set_out_of_reach_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hub:fpbench/absent@main:train") as caught:
        read_rows("hub:fpbench/absent@main:train")
    assert "\n" not in str(caught.value)


def test_digest_is_of_content_and_of_the_pin(tmp_path: Path) -> None:
    source = write(tmp_path, "a.txt", "one")
    assert digest(source) == hashlib.sha256(b"one").hexdigest()
    pins = ["hub:a/b@1:x", "hub:a/b@2:x", "hub:a/b@1:y", "hub:a/b/c@1:x", "hub:a/c@1:x"]
    assert len({digest(pin) for pin in pins}) == len(pins)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "line 3.*broken JSON"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "line 2.*found a list"),
        ("a.jsonl", "\n", "found none"),
        ("a.json", '[{"a": 1},\n 2 3]', "line 2.*broken JSON"),
        ("a.json", '{"a": 1}', "found a dict"),
        ("a.json", "[1]", "row 1.*found a int"),
        ("a.txt", " \n\n", "found none"),
        ("a.csv", "x", "found '.csv'"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    source = write(tmp_path, name, text)
    with pytest.raises(InputError, match=reason) as caught:
        read_rows(source)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_wrong_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        digest(str(tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match="Is a directory|Permission"):
        (tmp_path / "folder.txt").mkdir()
        read_text(str(tmp_path / "folder.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="expected UTF-8, found byte 0xe9 at 3"):
        read_text(str(tmp_path / "latin.txt"))


def test_a_missing_field_is_named_with_its_row() -> None:
    rows = [{"a": 1, "b": 2}, {"a": 1}]
    assert require_fields(rows, ["a"], "s") == rows
    with pytest.raises(InputError, match="'s', row 2: expected the field 'b', found a"):
        require_fields(rows, ["a", "b"], "s")
    with pytest.raises(InputError, match="row 2.*'text'"):
        require_fields([{"text": "x"}, {}], ["text"], "s")


MIRROR = """
["hub:acme/rows:train"]
path = "all.jsonl"
stand_in = "two rows"
["hub:acme/rows/one:train"]
path = "one.jsonl"
"""


def test_a_mirror_stands_in_for_hub_data_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror.toml").write_text(MIRROR)
    (tmp_path / "all.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "one.jsonl").write_text('{"text": "c"}\n')
    of_one, of_all = "hub:acme/rows/one@v1:train", "hub:acme/rows/en/part-0.json.gz@main:train"
    assert data.origin(of_one) == "hub"
    monkeypatch.setenv("FPBENCH_MIRROR", str(tmp_path))
    assert data.read_texts(of_one) == ["c"] and data.origin(of_one) == "mirror"
    assert data.read_texts(of_all) == ["a", "b"] and data.origin(of_all) == "stand-in: two rows"
    assert data.digest(of_all) == data.digest(str(tmp_path / "all.jsonl"))
    assert data.origin("hub:acme/rows@v1:test") == data.origin("hub:acme/other@v1:train") == "hub"
    assert data.origin("bundled:boolq.jsonl") == "bundled" and data.origin("rows.jsonl") == "file"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "readable mirror.toml, found: "), ("[", "readable mirror.toml, found: "), ('["a"]\nfile = "x"', "key 'a")],
)
def test_a_malformed_mirror_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "mirror.toml").write_text(content)
    monkeypatch.setenv("FPBENCH_MIRROR", str(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        data.read_rows("hub:acme/rows@v1:train")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_the_lines_of_wikitext_are_those_of_its_own_data_set(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n = Title = \n \n A line . \n\n", encoding="utf-8")
    assert data.read_lines(str(path)) == ["", " = Title = \n", "", " A line . \n", ""]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in data.read_lines(str(path))))
    assert data.read_lines(str(rows)) == data.read_lines(str(path))


def test_wikitext_2_has_4358_lines(shared: Path) -> None:
    assert len(data.read_lines(str(shared / "data" / "wikitext2" / "wiki.test.raw"))) == 4358
