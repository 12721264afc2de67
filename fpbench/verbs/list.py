"""``fpbench list``: what is registered."""

import argparse
import json

HELP = "what is registered: methods, conditions, adversaries, sets, profiles"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("--json", action="store_true", help="as one JSON object, with dose, level and payment of each")


def do(options: argparse.Namespace) -> int:
    """Print every registered name, one line each: what it does, its threat level and its doses."""
    from fpbench.runs.catalogue import list_registered

    found = list_registered()
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for title, entries in found.items():
        print(f"{title}:")
        for name, about in entries.items():
            level = f"{about['level']}  " if "level" in about else ""
            doses = f"  [{about['dose']['unit']}: {about['dose']['list']}]" if about.get("dose") else ""
            print(f"  {name:<28}{level}{about.get('does', '')}{doses}".rstrip())
    return 0
