"""The adapter contract as checks that run: on every registered method, and on an adapter that a user writes.

>>> from fpbench.contract import check
>>> [finding for finding in check("my_method") if not finding.passed]

Adversaries have checks of their own, in :mod:`fpbench.contract.adversary`.
"""

from fpbench.checks import Check, Finding
from fpbench.contract.checks import CHECKS, check

__all__ = ["CHECKS", "Check", "Finding", "check"]
