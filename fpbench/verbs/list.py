"""``fpbench list``: what is registered."""

import argparse

HELP = "what is registered: methods, conditions, sets, profiles"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def do(options: argparse.Namespace) -> int:
    """Print every registered name."""
    from fpbench.fingerprints.library import BUILT_IN, MODEL_DEPENDENT
    from fpbench.registry import METHODS, MODIFICATIONS
    from fpbench.runs.profile import profile_names

    for title, names in (
        ("methods", METHODS.names()),
        ("conditions", ["origin", *MODIFICATIONS.names()]),
        ("fingerprint sets", [*BUILT_IN, *MODEL_DEPENDENT, "any .jsonl file"]),
        ("models", ["micro (bundled)", "any folder", "any hub id"]),
        ("profiles", profile_names()),
    ):
        print(f"{title + ':':<18}{', '.join(names)}")
    return 0
