"""What is handed in and committed keeps the rules that we hold others to."""

from pathlib import Path

import pytest

from fpbench.submissions.folder import Submission, inspect
from fpbench.submissions.rerun import claimed
from tests.conftest import ROOT

HANDED_IN = sorted(path for path in (ROOT / "submissions").iterdir() if path.is_dir() and path.name[0] != "_")


@pytest.mark.parametrize("folder", HANDED_IN, ids=lambda path: path.name)
def test_there_is_nothing_to_find(folder: Path) -> None:
    submission = Submission(folder)
    assert [str(finding) for finding in inspect(submission) if not finding.passed] == []
    if not (folder / "records").is_dir():
        pytest.skip(f"{folder.name}: its author has handed in no records yet")
    methods = {group.key[2] for group in claimed(submission)}
    assert methods == {"base", folder.name}, "its records are of this very code"


@pytest.mark.parametrize("folder", HANDED_IN, ids=lambda path: path.name)
def test_its_records_come_from_no_particular_machine(folder: Path) -> None:
    for path in folder.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if place in text], path
