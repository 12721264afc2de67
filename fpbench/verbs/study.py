"""``fpbench study``: the paper's analyses."""

import argparse

from fpbench.verbs.common import add_condition, add_loading, add_profile, chosen_grid, prepare, tell, watch

HELP = "one of the paper's analyses on a profile, as a table and a figure"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("name", choices=["kind", "targets", "length", "ablation", "margin"], help="what is varied")
    add_profile(verb, "model, data, sizes and conditions")
    verb.add_argument(
        "--model", nargs="+", metavar="M", help="folders, hub ids, 'micro', 'smollm2' (default: the profile's)"
    )
    verb.add_argument("--fingerprints", nargs="+", metavar="S", help="built-in sets, .jsonl or .json files")
    add_condition(verb)
    verb.add_argument("--out", metavar="DIR", help="records and tables (default: fpbench-study-NAME)")
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Run the study and print its table."""
    loading = prepare(options)
    from fpbench.runs.study import study

    out = options.out or f"fpbench-study-{options.name}"
    table, failed = study(options.name, chosen_grid(options), out, loading, watch(options))
    print(table)
    tell(f"records and tables: {out}")
    return 1 if failed else 0
