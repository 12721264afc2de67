"""``fpbench compare``: white-box lineage."""

import argparse

HELP = "tell by their weights whether one checkpoint descends from another"
NOTE = (
    "Blocks of the language models are matched by content, and their matrices of the same shape correlated entry by "
    "entry, which decides; models of other shapes are compared by "
    "how the spread of their attention projections changes from block to block (arXiv 2507.03014), which needs 12 "
    "blocks and unrelated models to hold it against. No model is run."
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.description = NOTE
    verb.add_argument("a", metavar="A", help="folder, .gguf file, hub id, 'micro' or 'smollm2'")
    verb.add_argument("b", metavar="B", help="likewise")
    verb.add_argument("--unrelated", nargs="+", default=[], metavar="M", help="models known to be unrelated to A")
    verb.add_argument("--base", metavar="C", help="the base of an adapter that names one which is not here")
    verb.add_argument("--revision", help="branch, tag or commit of hub ids")
    verb.add_argument("--out", metavar="DIR", help="also write comparison.json, and its figure (extra 'plots'), there")


def do(options: argparse.Namespace) -> int:
    """Print the verdict and what it rests on."""
    from fpbench.ownership.lineage import compare, report, write

    found = compare(options.a, options.b, unrelated=options.unrelated, revision=options.revision, base=options.base)
    print(report(found, options.a, options.b))
    if options.out is not None:
        write(found, options.a, options.b, options.out)
    return 0
