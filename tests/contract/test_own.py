"""Methods of the package and the template keep the contract: here with fewer steps, as they are in the slow tier."""

import pytest

from fpbench.contract import CHECKS, check
from fpbench.errors import InputError
from fpbench.registry import METHODS
from tests.conftest import Register
from tests.contract.template import ADAPTER, Template, told

# Fewer and longer steps, for one of each kind: training, direct editing, a hypernetwork.
QUICK = {
    "lora": {"epochs": 16, "learning_rate": 4e-3, "regularisation": 1},
    "mcedit_a": {},
    "mcedit_r": {"steps": 20, "rate": 1e-3},
}


@pytest.mark.parametrize("method", QUICK)
def test_one_method_of_each_kind_keeps_the_contract(method: str) -> None:
    findings = check(method, QUICK[method])
    assert all(finding.passed for finding in findings), told(findings)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.own)
def test_every_method_keeps_the_contract(method: str) -> None:
    findings = check(method)
    assert [finding.name for finding in findings] == [each.name for each in CHECKS]
    assert all(finding.passed for finding in findings), told(findings)


def test_the_template_keeps_the_contract(registered: Register) -> None:
    findings = check(registered(Template))
    assert all(finding.passed for finding in findings), told(findings)
    assert len(ADAPTER.read_text().splitlines()) <= 60


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="unknown method 'lorra'.*did you mean 'lora'"):
        check("lorra")


def test_hyperparameters_can_be_given(registered: Register) -> None:
    findings = {finding.name: finding for finding in check(registered(Template), {"stepz": 3})}
    assert not findings["injects"].passed
    assert "key 'stepz': Extra inputs are not permitted; known keys: steps" in findings["injects"].found
