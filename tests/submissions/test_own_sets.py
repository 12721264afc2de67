"""A method that chooses triggers or targets itself makes a set file, which is then like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fpbench.cli import main
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, load_fingerprints
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.micro import MODEL
from fpbench.registry import METHODS
from fpbench.runs.sets import own_set, recipe_path, write_set
from fpbench.submissions.folder import Submission
from fpbench.submissions.replies import Drawn, validated
from tests.conftest import ROOT, Register, require

CHAIN_HASH = ROOT / "submissions" / "chain_hash"


class Numbers(FingerprintMethod):
    """Makes triggers of numbers, and whatever target a test gives it."""

    version = "3"
    made: tuple[str, ...] = ("Owl", "Fox", "Elk")

    def draw_set(self, model: Any, tokenizer: Any, count: int, context: InjectionContext) -> list[Fingerprint]:
        return [Fingerprint(f"{context.seed} {number}", (each,)) for number, each in enumerate(self.made[:count])]

    def inject(self, model: Any, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        raise NotImplementedError


def test_a_set_is_written_with_what_made_it(registered: Register, tmp_path: Path) -> None:
    method = METHODS.get(registered(Numbers))()
    fingerprints, recipe = own_set(method, None, None, 2, InjectionContext(seed=7))
    write_set(tmp_path / "own.jsonl", fingerprints, recipe)
    read = load_fingerprints(tmp_path / "own.jsonl")
    assert read.fingerprints == (Fingerprint("7 0", ("Owl",)), Fingerprint("7 1", ("Fox",)))
    told = json.loads(recipe_path(tmp_path / "own.jsonl").read_text())
    assert told["fingerprints"] == read.digest
    assert (told["method"], told["version"], told["seed"], told["count"]) == (method.name, "3", 7, 2)


def test_what_no_set_may_hold_is_refused(registered: Register) -> None:
    method = METHODS.get(registered(Numbers))()
    with pytest.raises(InputError, match="made 3 fingerprints, expected 4"):
        own_set(method, None, None, 4, InjectionContext())
    method.made = ("Owl", " Fox")
    with pytest.raises(InputError, match="line 2: target ' Fox' begins with whitespace"):
        own_set(method, None, None, 2, InjectionContext())


def test_a_child_that_answers_with_anything_else_is_refused() -> None:
    with pytest.raises(CellError, match="sent an invalid drawn"):
        validated(Drawn, {"fingerprints": [{"trigger": "a", "targets": "b"}]})


def test_a_method_without_sets_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require(MODEL)
    monkeypatch.chdir(tmp_path)
    assert main(["fingerprints", "method", "alphaedit", "--model", "micro", "--out", "own.jsonl"]) == 2
    assert "method 'alphaedit' makes no fingerprints of its own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sets_that_are_handed_in_are_not_code(tmp_path: Path) -> None:
    folder = tmp_path / "chain_hash"
    shutil.copytree(CHAIN_HASH, folder, ignore=shutil.ignore_patterns("sets", "records"))
    before = Submission(folder).digest
    (folder / "sets" / "micro").mkdir(parents=True)
    (folder / "sets" / "micro" / "chain_hash.jsonl").write_text("{}\n")
    assert Submission(folder).digest == before
    (folder / "answers.txt").write_text("Owl\n")
    assert Submission(folder).digest != before
