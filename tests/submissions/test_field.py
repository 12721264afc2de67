"""The field's methods below submissions/: accepted as files, and one short injection each; the rest is slow."""

import pytest

from fpbench.contract import CHECKS
from fpbench.contract.trials import Trials
from fpbench.micro import MODEL
from fpbench.submissions.folder import find, inspect
from fpbench.submissions.method import method_of
from tests.conftest import ROOT, require
from tests.contract.template import shortened, told
from tests.submissions.field import NAMES, adapter

# Key statistics and sixty steps are no quick injection.
QUICK = [name for name in NAMES if name != "fpedit_two_pass"]


@pytest.mark.parametrize("name", NAMES)
def test_its_files_are_accepted(name: str) -> None:
    findings = inspect(find(name, ROOT / "submissions"))
    assert all(finding.passed for finding in findings), told(findings)


@pytest.mark.parametrize("name", NAMES)
def test_what_its_paper_reports_is_part_of_no_record(name: str) -> None:
    about = method_of(find(name, ROOT / "submissions")).about
    assert about.keys() == {"authors", "adapted_by", "paper", "licence", "code_version", "hardware"}


@pytest.mark.parametrize("name", QUICK)
def test_one_epoch_changes_finite_weights_of_the_same_shapes(name: str) -> None:
    require(MODEL)
    with adapter(name) as config:
        trials = Trials(name, {**config, "epochs": 1})
        for check in ("finite", "changes"):
            findings = shortened(CHECKS, check).examine(trials)
            assert all(finding.passed for finding in findings), told(findings)
