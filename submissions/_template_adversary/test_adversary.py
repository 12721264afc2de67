"""The adversary's own test; `pytest` in this folder runs it."""

import adversary  # noqa: F401 - registers it

from fpbench.contract.adversary import check


def test_it_keeps_the_contract():
    """Every promise, on the bundled model."""
    assert [str(finding) for finding in check("level_first") if not finding.passed] == []
