"""``fpbench evaluate``: any checkpoint that somebody hands in."""

import argparse

from fpbench.verbs.common import (
    add_condition,
    add_limit,
    add_loading,
    add_profile,
    chosen_profile,
    prepare,
    tell,
    watch,
)

HELP = "score any Hugging Face checkpoint that somebody hands in"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("model", metavar="MODEL", help="folder, .gguf file, hub id, 'micro' or 'smollm2'")
    verb.add_argument("--fingerprints", required=True, metavar="S", help="built-in set, .jsonl or .json file")
    verb.add_argument("--base", metavar="B", help="the base, whose tokenizer scores; for deltas and bands")
    add_condition(verb, "origin")
    add_profile(verb, "decoding, data and sizes")
    verb.add_argument("--out", default="fpbench-evaluation", metavar="DIR", help="records (default: %(default)s)")
    add_limit(verb)
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Score the checkpoint and print its rows."""
    loading = prepare(options)
    from fpbench.board.tables import summary
    from fpbench.runs.api import evaluate_checkpoint

    conditions = options.condition or ["origin"]
    profile = chosen_profile(
        options,
        models=[options.base or options.model],
        methods=[],
        fingerprints=[options.fingerprints],
        conditions=conditions,
    )
    rows = evaluate_checkpoint(profile, options.model, options.base, options.out, loading, watch(options))
    print(summary(rows))
    for remark in {each: None for row in rows for found in row.provenance for each in found.get("checkpoint", ())}:
        tell(f"{options.model}: {remark}.")
    tell(f"\nrecords: {options.out}")
    return 1 if any(row.failed for row in rows) else 0
