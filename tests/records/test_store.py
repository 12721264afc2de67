import json
import resource
import subprocess
import sys

import pytest

from fpbench.errors import InputError, StorageError
from fpbench.records.cell import PROTOCOL, Cell
from fpbench.records.record import SCHEMA, Record, cell_id
from fpbench.records.store import TEMPORARY, Store, read_records, write_text
from fpbench.text import canonical

CELL = Cell("micro", "nlf", "lora", 42, "origin", "fsr")
IDENTITY = {"model": "abc", "protocol": PROTOCOL, "seed": 42, "condition": "origin", "metric": "fsr"}
NAME = cell_id(IDENTITY)


def record(status="done", **changes):
    return Record(CELL, status, PROTOCOL, NAME, IDENTITY, **changes)


def test_a_record_is_found_again_only_for_the_same_measurement(tmp_path):
    store = Store(tmp_path)
    assert store.find(CELL, NAME) is None
    store.write(record(result={"mean": 0.5}), [{"p": 1.0}, {"p": 0.0}])
    found = store.find(CELL, NAME)
    assert found.result == {"mean": 0.5}
    assert found.queries.count == 2
    assert store.find(CELL, cell_id({"model": "abc", "seed": 43})) is None


def test_a_failed_record_is_measured_again(tmp_path):
    store = Store(tmp_path)
    store.write(record(status="failed", reason="out of memory"), [])
    assert store.find(CELL, NAME) is None
    assert read_records(store.records)[0].reason == "out of memory"


def cut_short(text):
    return text[:-20]


def other_figure(text):
    return text.replace("0.5", "0.6")


def not_json(text):
    return "[" + text


def other_schema(text):
    return text.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')


@pytest.mark.parametrize(
    "damage", [cut_short, other_figure, not_json, other_schema, lambda text: "", lambda text: "[]"]
)
def test_a_damaged_record_is_reported_measured_again_and_never_shown(tmp_path, caplog, damage):
    store = Store(tmp_path)
    store.write(record(result={"mean": 0.5}), [])
    path = store.record_path(CELL)
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    assert store.find(CELL, NAME) is None
    assert path.name in caplog.text and "counts for nothing" in caplog.text
    (shown,) = read_records(store.records)
    assert shown.status == "failed" and "damaged" in shown.reason and not shown.result
    assert shown.cell == CELL


def test_bytes_that_are_no_text_are_damage(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record(result={}), [])
    store.record_path(CELL).write_bytes(b"\xff\xfe")
    assert store.find(CELL, NAME) is None
    assert "cannot be read" in caplog.text


def test_damaged_queries_are_reported_and_measured_again(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record(result={}), [{"p": 1.0}, {"p": 0.0}])
    lines = store.record_path(CELL).with_suffix(".jsonl")
    lines.write_text(lines.read_text().replace("1.0", "0.9"))
    assert store.find(CELL, NAME) is None
    assert str(CELL) in caplog.text


def test_a_record_at_the_place_of_another_is_not_shown(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record(result={"mean": 0.5}), [])
    other = store.record_path(CELL).with_name("near.json")
    store.record_path(CELL).rename(other)
    (shown,) = read_records(store.records)
    assert shown.status == "failed" and "another cell" in shown.reason and shown.cell.metric == "near"
    assert "another cell" in caplog.text


def test_what_is_no_record_by_its_place_is_left_out(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "notes.json").write_text("{}")
    assert read_records(tmp_path / "records") == []


def test_a_cell_is_known_by_the_place_of_its_record():
    assert Cell.at(CELL.path) == CELL
    for odd in ("a/b/c", "a/b/c/seed-x/e/f", "a/b/c/42/e/f", "a/b/c/seed-1/e/f/g"):
        assert Cell.at(odd) is None


def test_identity_does_not_depend_on_key_order_and_refuses_nan():
    assert cell_id({"a": 1, "b": 2}) == cell_id({"b": 2, "a": 1})
    assert cell_id({"a": 1}) != cell_id({"a": 2})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": float("nan")})


def test_nothing_half_written_remains_when_the_disk_gives_out(tmp_path):
    """A child process under a file-size limit: the old file stays, no temporary file is left."""
    write_text(tmp_path / "record.json", "old")
    code = (
        "import resource, sys; from pathlib import Path; from fpbench.errors import StorageError;"
        "from fpbench.records.store import write_text;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "path = Path(sys.argv[1]);\n"
        "try: write_text(path, 'x' * 1000)\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "record.json")], capture_output=True, text=True, check=True
    )
    assert "cannot be written (File too large)" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "old"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100


def test_an_output_folder_below_a_file_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "file" / "out").check()


def test_a_folder_that_becomes_a_file_is_a_storage_error(tmp_path):
    store = Store(tmp_path / "out")
    store.check()
    assert not (tmp_path / "out").exists()  # only probed
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records").write_text("in the way")
    with pytest.raises(StorageError):
        store.write(record(), [])


def test_queries_of_an_earlier_result_do_not_stay_beside_a_failure(tmp_path):
    store = Store(tmp_path)
    store.write(record(result={}), [{"p": 1.0}])
    store.write(record(status="failed", reason="x"), [])
    assert not store.record_path(CELL).with_suffix(".jsonl").exists()
    assert "queries" not in json.loads(store.record_path(CELL).read_text())


def test_a_folder_of_the_user_s_is_no_store(tmp_path):
    for name in (".env", ".gitignore", "project/.netrc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run of fpbench"):
        Store(tmp_path).check()


def test_a_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.write(record(result={}), [])
    place = store.record_path(CELL).parent
    left = [folder / f".fsr.json.ab12_xyz{TEMPORARY}" for folder in (place, tmp_path)]
    kept = [
        tmp_path / ".env",
        tmp_path / "notes" / f".a.json.ab12_xyz{TEMPORARY}",
        place / ".fsr.json.ab12_xyz",
        place / f".fsr{TEMPORARY}",
        place / f"fsr.json.ab12_xyz{TEMPORARY}",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    link = place / f".link.json.ab12_xyz{TEMPORARY}"
    link.symlink_to(tmp_path / ".env")
    store.check()
    store.sweep()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*kept, link))
