"""``fpbench inject``: a fingerprinted checkpoint."""

import argparse
from pathlib import Path

from fpbench.verbs.common import (
    add_loading,
    add_profile,
    add_unconfined,
    chosen_profile,
    confine,
    prepare,
    watch,
)

HELP = "write a fingerprinted checkpoint, with a model card, that plain transformers loads"


# Of the committed records: six methods on micro, three on SmolLM2-135M.
USUAL = (
    "(usual: about 10% for LoRA, 10% to 20% for edits, over 100% for closed-form edits of very small models;\n"
    "`fpbench evaluate` says what it did to the model)"
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("model", metavar="MODEL", help="folder, .gguf file, hub id, 'micro' or 'smollm2'")
    verb.add_argument("--method", required=True, metavar="X", help="see `fpbench list`")
    verb.add_argument("--fingerprints", required=True, metavar="S", help="built-in set, .jsonl or .json file")
    verb.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet or is empty")
    verb.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="then upload it with your own token (a new repository is private)"
    )
    add_profile(verb, "data and hyper-parameters")
    add_unconfined(verb)
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Inject, save, and say what moved."""
    loading = prepare(options)
    from fpbench.runs.api import inject_checkpoint
    from fpbench.runs.card import check_push, push

    if options.push_to_hub is not None:
        check_push()
    profile = chosen_profile(
        options, models=[options.model], methods=[options.method], fingerprints=[options.fingerprints]
    )
    confine(options, [options.method])
    report = inject_checkpoint(profile, options.out, loading, watch(options).bar)
    changed = report.changed
    print(
        f"{options.out}: {options.method} injected {options.fingerprints} in {report.seconds['total']:.1f} s, "
        f"{report.peak_memory / 2**20:.0f} MiB at the peak\n"
        f"{changed['fraction']:.1%} of the weights moved, and those by {changed['relative_norm']:.2%} of their norm\n"
        f"{USUAL}"
    )
    if text := report.text:
        print("key statistics: {tokens:,} tokens of {documents} documents, in {windows} windows".format(**text))
    if options.push_to_hub is not None:
        print(f"uploaded: {push(Path(options.out), options.push_to_hub)}")
    return 0
