"""The lock file: what it holds, and what is held against it."""

import hashlib
import json
from pathlib import Path

import pytest

from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.lock import Pin

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path))
    return tmp_path


def test_pins_are_read_as_they_were_written(cache: Path) -> None:
    assert lock.pins() == {}
    entries = {
        "model:a/b@main": Pin(commit=COMMIT, files={"x": "1"}),
        "hub:a/b@v1:x": Pin(commit=COMMIT, files={"y": "2"}),
    }
    lock.lock_file().write_text(lock.text(entries))
    assert lock.pins() == entries and list(json.loads(lock.lock_file().read_text())) == sorted(entries)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("{", "the whole file"),
        ("[]", "the whole file"),
        ('{"a": []}', "a"),
        ('{"a": {"commit": "main", "files": {"x": "1"}}}', "a.commit"),
        (json.dumps({"a": {"commit": COMMIT, "files": {}}}), "a.files"),
        (json.dumps({"a": {"commit": COMMIT, "files": {"x": "1"}, "more": 1}}), "a.more"),
    ],
)
def test_a_broken_lock_file_is_named_with_the_place(content: str, where: str) -> None:
    lock.lock_file().write_text(content)
    with pytest.raises(InputError, match=f"expected a commit and SHA-256 digests by name, found {where}: ") as caught:
        lock.pins()
    assert str(lock.lock_file()) in str(caught.value) and "\n" not in str(caught.value)


def test_a_lock_file_that_cannot_be_read_is_no_missing_one(cache: Path) -> None:
    lock.lock_file().mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        lock.pins()


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FPBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert lock.cache() == tmp_path / "fpbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert lock.cache() == Path.home() / ".cache" / "fpbench"


def test_names_and_rows_of_different_things_differ() -> None:
    assert lock.model_name("a/b", None) == lock.model_name("a/b", "main") != lock.model_name("a/b", "v1")
    sources = [
        "hub:a/b@main:x",
        "hub:a/b@main:y",
        "hub:a/b@v1:x",
        "hub:a/b/c@main:x",
        "hub:a/b/x@main:x",
        "hub:a/b@v/1:x",
    ]
    files = [lock.rows_file(source) for source in sources]
    assert len(set(files)) == len(sources) and {file.parent for file in files} == {lock.cache() / "rows"}


def test_every_file_is_held_against_its_digest(cache: Path) -> None:
    (cache / "blob").write_bytes(b"one")
    (cache / "file").symlink_to(cache / "blob")
    pin = Pin(commit=COMMIT, files={"file": hashlib.sha256(b"one").hexdigest()})
    lock.verify("it", cache, pin)
    (cache / "blob").write_bytes(b"two")
    with pytest.raises(InputError, match=f"it: expected .* found .*; delete {cache / 'blob'} and run `fpbench fetch`"):
        lock.verify("it", cache, pin)
    (cache / "blob").unlink()
    with pytest.raises(InputError, match="it: expected .*file, as it was fetched, found: No such file"):
        lock.verify("it", cache, pin)
