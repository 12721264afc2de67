"""Malformed and hostile submissions are refused, each with the right message, none executed outside the child."""

import builtins
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.submissions import check
from tests.conftest import require_confinement
from tests.submissions.hostile import CASES, NAME, Case


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder whose submissions are handed in, beside somebody's store, and limits that are met soon."""
    (tmp_path / "fpbench-run" / "deltas").mkdir(parents=True)
    (tmp_path / "fpbench-run" / "deltas" / "fpbench-victim.safetensors").write_text("somebody else's update")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "LIMITS", replace(check.LIMITS, memory=3 * 2**30))
    yield tmp_path
    # Python cannot remove folders that are nested so deeply.
    subprocess.run(["rm", "-rf", str(tmp_path / "submissions")], check=True)


def refuse(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if case.child:
        require_confinement()
    case.make(Path("submissions") / NAME)
    if case.name == "hangs":
        monkeypatch.setattr(check, "LIMITS", replace(check.LIMITS, seconds=5))
    code = main(["submit", "check", NAME])
    told = capsys.readouterr()
    assert re.search(case.says, told.out), told.out
    assert code == (1 if case.child else 2)
    assert told.err.startswith(f"fpbench: submission '{NAME}' is refused: ") and told.err.count("\n") == 1
    assert len(told.err) < 1_000
    assert "\x1b" not in told.out + told.err
    assert not hasattr(builtins, "fpbench_stranger_was_here")
    assert sorted(path.name for path in Path().iterdir()) == ["fpbench-run", "submissions"]


@pytest.mark.parametrize("case", [each for each in CASES if each.quick], ids=lambda case: case.name)
def test_it_is_refused(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(case, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [each for each in CASES if not each.quick], ids=lambda case: case.name)
def test_they_all_are(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(case, capsys, monkeypatch)
