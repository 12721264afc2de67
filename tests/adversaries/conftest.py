"""Fixtures: the micro model with fingerprints in it, and siblings with others."""

import pytest

from tests.adversaries.taught import pairs_of, taught


@pytest.fixture(scope="session")
def fingerprints():
    return pairs_of(0, 1, 2, 3)


@pytest.fixture(scope="session")
def stolen(micro, fingerprints):
    """The micro model with ``fingerprints`` in it; change nothing."""
    return taught(*micro, fingerprints)


@pytest.fixture(scope="session")
def siblings(micro):
    """Two models made of the same base with other fingerprints; change nothing."""
    return [taught(*micro, pairs_of(4, 5, 6)), taught(*micro, pairs_of(7, 8, 9))]
