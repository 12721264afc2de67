"""The adapter's own test; `pytest` in this folder runs it."""

import adapter  # noqa: F401 - registers the method

from fpbench.contract import check


def test_it_keeps_the_contract():
    """Every promise, on the bundled model."""
    assert [str(finding) for finding in check("fpedit_two_pass") if not finding.passed] == []
