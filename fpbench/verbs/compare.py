"""``fpbench compare``: white-box lineage."""

import argparse

from fpbench.errors import InputError

HELP = "tell by their weights whether one checkpoint descends from another"
NOTE = (
    "Blocks of the language models are matched by content, and their matrices of the same shape correlated entry by "
    "entry, which decides; models of other shapes are compared by how the spread of their attention projections "
    "changes from block to block (arXiv 2507.03014), which needs 12 blocks and unrelated models to hold it against. "
    "With several B, those that A can descend from are told from the others at a stated coverage. No model is run."
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.description = NOTE
    verb.add_argument("a", metavar="A", help="folder, .gguf file, hub id, 'micro' or 'smollm2'")
    verb.add_argument("b", metavar="B", nargs="+", help="likewise; of several, the set that A can descend from")
    verb.add_argument("--unrelated", nargs="+", default=[], metavar="M", help="models known to be unrelated to A")
    verb.add_argument("--base", metavar="C", help="the base of an adapter that names one which is not here")
    verb.add_argument(
        "--coverage", type=float, default=0.95, metavar="P", help="of the set of parents (default: %(default)s)"
    )
    verb.add_argument("--revision", help="branch, tag or commit of hub ids")
    verb.add_argument("--out", metavar="DIR", help="also write what was found, and its figure (extra 'plots'), there")


def do(options: argparse.Namespace) -> int:
    """Print the verdict and what it rests on."""
    if len(options.b) > 1:
        return _parents(options)
    from fpbench.ownership.lineage import compare, report, write

    (other,) = options.b
    found = compare(options.a, other, unrelated=options.unrelated, revision=options.revision, base=options.base)
    print(report(found, options.a, other))
    if options.out is not None:
        write(found, options.a, other, options.out)
    return 0


def _parents(options: argparse.Namespace) -> int:
    """Print the candidates that A can descend from."""
    from fpbench.ownership.parents import parents, report, write

    if options.unrelated:
        raise InputError("--unrelated is for one B: several are held against each other.")
    found = parents(options.a, options.b, coverage=options.coverage, revision=options.revision, base=options.base)
    print(report(found))
    if options.out is not None:
        write(found, options.out)
    return 0
