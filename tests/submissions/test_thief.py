"""Adversaries that strangers hand in: looked at, and run nowhere but in a child process."""

import contextlib
import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from fpbench.adversaries.base import Adversary, AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries, class_of, expand, is_attack, level, priced_on_base
from fpbench.cli import main
from fpbench.errors import CellError, InputError
from fpbench.methods.base import Base
from fpbench.metrics.fsr import exact_fsr, fsr
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.models.prompts import encode
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES, METHODS
from fpbench.scoring.engine import next_logits
from fpbench.scoring.responses import Decoding
from fpbench.submissions import thief
from fpbench.submissions.discovery import Discovery
from fpbench.submissions.folder import ADVERSARY, OF_ADVERSARIES, Submission, write_new
from fpbench.submissions.replies import Declaration
from tests.adversaries.taught import pairs_of, taught
from tests.conftest import require_confinement

NAME = "my_thief"


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    return Submission(write_new(NAME, tmp_path / "submissions", ADVERSARY))


@pytest.fixture
def found(submission: Submission, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """The submission, where conditions may name it."""
    for registry in (METHODS, ADVERSARIES):
        monkeypatch.setattr(registry, "finders", [])
    ADVERSARIES.add_finder(Discovery(submission.folder.parent, attacks=True))
    return submission


def changed(submission: Submission, before: str, after: str, name: str = "adversary.py") -> Submission:
    path = submission.folder / name
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
    assert [finding for finding in OF_ADVERSARIES.examine(submission) if not finding.passed] == []
    assert f'register("{NAME}")' in (submission.folder / "adversary.py").read_text()


def test_files_are_looked_at_before_anything_runs(submission: Submission, tmp_path: Path) -> None:
    (submission.folder / "weights.pt").write_bytes(b"")
    assert "pickle: expected no pickle and no weights; found weights.pt" in refused(submission)
    (submission.folder / "weights.pt").unlink()
    taken = Submission(submission.folder.rename(tmp_path / "suppress"))
    assert "adversary 'my_thief' in folder 'suppress'" in refused(taken)
    assert "'suppress', which is taken" in refused(changed(taken, NAME, "suppress", "submission.toml"))
    for name in ("submission.toml", "adversary.py"):
        (taken.folder / name).rename(taken.folder / "kept.txt")
        assert f"required: expected the files submission.toml, adversary.py, README.md; found no {name}" in refused(
            Submission(taken.folder)
        )
        (taken.folder / "kept.txt").rename(taken.folder / name)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('level = "L1"', 'level = "L9"', "key 'level'"),
        ('parts = ["sampler"]', 'parts = ["weights"]', "key 'parts.0'"),
        ('parts = ["sampler"]', "parts = []", "key 'parts'"),
        ("inference = 1", "inference = -1", "key 'pays.inference'"),
        ("list = [1, 4]", "list = []", "key 'dose.list'"),
        ('licence = "Apache-2.0"', 'needs = ["siblings"]', "key 'needs.0'|key 'licence'"),
    ],
)
def test_a_manifest_says_what_nobody_may_have_to_run_code_for(submission: Submission, before, after, said) -> None:
    line = refused(changed(submission, before, after, "submission.toml"))
    assert any(each in line for each in said.split("|")) and "\n" not in line


def test_what_class_and_manifest_say_otherwise_is_one_line(submission: Submission) -> None:
    told = {"version": "1", "level": "L1", "parts": ["sampler"], "needs": [], "pays": {"inference": 1.0}}
    told["dose"] = dataclasses.asdict(Dose("steps", 1, (1, 4))) | {"list": [1, 4]}
    said = Declaration(names=[NAME], **told)
    assert said.differs(submission.adversary) is None
    for name, other in (("version", "2"), ("level", "L0"), ("parts", ["sampler", "weights"]), ("dose", None)):
        differing = Declaration(names=[NAME], **told | {name: other})
        assert differing.differs(submission.adversary).startswith(f"{name} {other} in adversary.py, ")


def test_a_submission_is_a_condition_and_no_preset(found: Submission) -> None:
    assert Discovery(found.folder.parent).names() == []  # it is no method
    assert class_of(NAME).level == level(f"{NAME}@4") == "L1"
    assert is_attack(NAME) and priced_on_base(f"{NAME}@1")
    assert not any(NAME in condition for condition in expand(["all"]))
    (one,) = adversaries(f"{NAME}@4")
    assert (one.amount, one.identity["version"].split("+")[0]) == (4, "1") and "adversary" not in sys.modules
    with pytest.raises(InputError, match="the dose is steps, a whole number from 0, found '1.5'"):
        adversaries(f"{NAME}@1.5")
    changed(found, "# Every key", "unknown = 1\n# Every key", "submission.toml")
    with pytest.raises(InputError, match=f"submission '{NAME}' is refused: manifest"):
        adversaries(NAME)
    assert not is_attack(NAME)  # a board of other rows goes on


def test_without_a_checkpoint_there_is_nowhere_to_run_it(found: Submission, micro) -> None:
    with pytest.raises(InputError, match=f"runs in a process of its own: .*fpbench submit run {NAME}"):
        fsr(*micro, pairs_of(0), adversary=NAME)


FAULTS = """\
    def sampler(self, prompt, prefix, logits):
        import torch
        match int(self.amount):
            case 2:
                return logits * float("nan")
            case 3:
                return logits[:-1]
            case 5:
                return torch.full_like(logits, -float("inf"))
            case 6:
                return self.context.model(logits)
            case 7:
                return "logits"
        return self.level_first(prompt, prefix, logits)

    def level_first(self, prompt, prefix, logits):"""


class LevelFirst(Adversary):
    """What the example does, in this process."""

    name, dose = NAME, Dose("steps", default=1, list=(1, 4))

    def sampler(self, prompt, prefix, logits):
        if len(prefix) >= self.amount or logits.softmax(-1).max() <= 0.9:
            return logits
        return logits.clamp(max=logits.topk(2).values[1])


def test_logits_go_to_the_child_and_come_back(found: Submission, micro) -> None:
    require_confinement()
    changed(found, "    def sampler(self, prompt, prefix, logits):", FAULTS)
    (model, tokenizer), pairs, decoding = micro, pairs_of(0), Decoding()
    model = taught(model, tokenizer, pairs)
    with contextlib.ExitStack() as closing:
        base = Base(MODEL, Loading("cpu", "float32"), "raw")
        context = AdversaryContext(model, tokenizer, decoding, checkpoint=base, closing=closing)
        attacks = {dose: Attack.on(adversaries(f"{NAME}@{dose}"), context) for dose in (0, 1, 2, 3, 5, 6, 7)}
        assert len({id(each.adversaries[0].child) for each in attacks.values()}) == 1
        assert attacks[1].confinement["missing"] == [] and "adversary" not in sys.modules

        prompts = [encode(tokenizer, each.trigger) for each in pairs_of(0, 1, 2)]
        logits, prefixes = next_logits(model, prompts), [()] * 3
        assert torch.equal(attacks[0].sampler(prompts, prefixes, logits), logits)
        own = Attack.on([LevelFirst()], AdversaryContext(model, tokenizer, decoding))
        assert torch.equal(
            attacks[1].sampler(prompts, prefixes, logits), expected := own.sampler(prompts, prefixes, logits)
        )
        assert not torch.equal(expected, logits)
        rates = [exact_fsr(model, tokenizer, pairs, decoding, attack=each).mean for each in (own, attacks[1])]
        assert rates[0] == rates[1] < 0.5 < exact_fsr(model, tokenizer, pairs, decoding).mean

        for dose, said in {
            2: "returned logits that are not finite",
            3: r"returned logits \(3, 4095\) torch.float32: expected \(3, 4096\)",
            5: "allows no token",
            6: "a submitted adversary gets logits, and no stolen model",
            7: "TypeError",
        }.items():
            with pytest.raises(CellError, match=said):
                attacks[dose].sampler(prompts, prefixes, logits)
    assert math.isfinite(logits.max())


@pytest.mark.slow
def test_one_that_gives_itself_another_name_or_leaves_is_refused(submission: Submission) -> None:
    require_confinement()
    assert "found other: use @ADVERSARIES.register" in refused(
        changed(submission, f'register("{NAME}")', 'register("other")')
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
