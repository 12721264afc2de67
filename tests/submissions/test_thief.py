"""Adversaries that strangers hand in: looked at, and run nowhere but in a child process."""

import sys
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.submissions import thief
from fpbench.submissions.folder import ADVERSARY, Submission, write_new
from tests.conftest import require_confinement


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    return Submission(write_new("my_thief", tmp_path, ADVERSARY))


def changed(submission: Submission, before: str, after: str) -> Submission:
    path = submission.folder / "adversary.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return Submission(submission.folder)  # which is looked at once


def refused(submission: Submission) -> str:
    """The first finding, of a submission of which nothing was imported here."""
    report = thief.check(submission)
    assert "adversary" not in sys.modules
    return str(report.refused[0])


def test_the_example_has_nothing_to_find_in_its_files(submission: Submission) -> None:
    assert [finding for finding in thief.OF_FILES.examine(submission) if not finding.passed] == []
    assert 'register("my_thief")' in (submission.folder / "adversary.py").read_text()


def test_files_are_looked_at_before_anything_runs(submission: Submission, tmp_path: Path) -> None:
    (submission.folder / "weights.pt").write_bytes(b"")
    assert "pickle: expected no pickle and no weights; found weights.pt" in refused(submission)
    (submission.folder / "weights.pt").unlink()
    (submission.folder / "adversary.py").unlink()
    submission = Submission(submission.folder)
    assert "required: expected the files adversary.py, README.md; found no adversary.py" in refused(submission)
    taken = submission.folder.rename(tmp_path / "suppress")
    assert "'suppress', which is taken" in str(thief.check(Submission(taken)).refused[-1])


def test_one_that_gives_itself_another_name_or_leaves_is_refused(submission: Submission) -> None:
    require_confinement()
    assert "found other: use @ADVERSARIES.register" in refused(
        changed(submission, 'register("my_thief")', 'register("other")')
    )
    leaves = changed(submission, "from fpbench import", "raise SystemExit(3)\nfrom fpbench import")
    assert "SystemExit: 3" in refused(leaves)


@pytest.mark.slow
def test_the_contract_is_run_in_the_child(
    submission: Submission, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_confinement()
    monkeypatch.chdir(submission.folder.parent)
    assert main(["submit", "check", str(submission.folder), "--adversary"]) == 0
    assert "base: passed" in capsys.readouterr().out
    counting = "        self.asked = getattr(self, 'asked', 0) + 1\n        logits = logits * self.asked\n"
    submission = changed(submission, "        if len(prefix)", f"{counting}        if len(prefix)")
    found = refused(submission)
    assert "contract: expected every promise of the contract kept" in found and "pure" in found
