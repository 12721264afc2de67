"""``fpbench doctor``: what this machine can do."""

import argparse

HELP = "what this machine can do"


def arguments(verb: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def do(options: argparse.Namespace) -> int:
    """Print every finding; 1 if one is bad."""
    from fpbench.runs.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'FAIL'}  {finding.what}: {finding.detail}")
    return 0 if all(finding.fine for finding in findings) else 1
