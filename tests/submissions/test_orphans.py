"""Folders of children whose parents were killed: removed at the next start, and only these."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from fpbench.submissions.scratch import FOLDER, LOCK, remove_orphans


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folder(path: Path, locked: bool) -> int | None:
    path.mkdir()
    (path / "weights").write_bytes(b"0" * 100)
    handle = os.open(path / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
    if locked:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle
    os.close(handle)
    return None


def test_what_a_dead_parent_left_is_removed_and_a_living_one_s_folder_stays(temporary: Path) -> None:
    folder(temporary / f"{FOLDER}dead", locked=False)
    handle = folder(temporary / f"{FOLDER}living", locked=True)
    folder(temporary / "of-somebody-else", locked=False)
    (temporary / f"{FOLDER}without-lock").mkdir()
    (temporary / f"{FOLDER}link").symlink_to(temporary / "of-somebody-else")
    remove_orphans()
    left = {path.name.removeprefix(FOLDER) for path in temporary.iterdir()}
    assert left == {"living", "of-somebody-else", "without-lock", "link"}
    assert (temporary / "of-somebody-else" / "weights").exists()
    assert handle is not None
    os.close(handle)
