"""``fpbench doctor``: what this machine can do."""

import argparse

HELP = "what this machine can do, and which of a profile's models and data it can have"


def arguments(verb: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    verb.add_argument(
        "profile",
        nargs="?",
        metavar="PROFILE",
        help="look for its models and data too: here, fetched, on the hub, gated or out of reach",
    )


def do(options: argparse.Namespace) -> int:
    """Print every finding; 1 if one is bad."""
    from fpbench.runs.doctor import examine, examine_profile
    from fpbench.runs.profile import load_profile

    profile = load_profile(options.profile) if options.profile else None
    findings = [*examine(), *(examine_profile(profile) if profile else [])]
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'FAIL'}  {finding.what}: {finding.detail}")
    return 0 if all(finding.fine for finding in findings) else 1
