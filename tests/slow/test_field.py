"""Every submission keeps the whole contract, and those that make sets make them in their child process, too."""

from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.contract import CHECKS, check
from fpbench.fingerprints import load_fingerprints
from fpbench.micro import MODEL
from tests.conftest import ROOT, require, require_confinement
from tests.contract.template import told
from tests.submissions.field import NAMES, adapter

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name: str) -> None:
    require(MODEL)
    with adapter(name) as config:
        findings = check(name, config)
    assert [finding.name for finding in findings] == [each.name for each in CHECKS]
    assert all(finding.passed for finding in findings), told(findings)


@pytest.mark.parametrize("name", ["chain_hash", "perinucleus", "utf"])
def test_it_makes_the_same_set_twice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(MODEL)
    require_confinement()
    monkeypatch.chdir(ROOT)
    made = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in made:
        command = ["fingerprints", "method", name, "--model", "micro", "--count", "4", "--out", str(path)]
        assert main(command) == 0
    one, two = map(load_fingerprints, made)
    assert one.fingerprints == two.fingerprints
    assert len(one) == 4
