"""What a comparison found, in plain words, and as files."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from tabulate import tabulate

from fpbench.runs.compare import Comparison
from fpbench.runs.store import Store, write_bytes, write_text

HEADERS = (
    "compared with",
    "matrices",
    "their correlation",
    "lowest",
    "highest",
    "signature",
    "95 %",
    "in random order",
)


def report(found: Comparison, a: str, b: str) -> str:
    """The verdict, its reason, and every figure that it rests on."""
    lines = [(b, found.weights, found.signature), *((name, *each) for name, each in found.unrelated.items())]
    rows = []
    for number, (name, weights, signature) in enumerate(lines):
        row = [f"{name} (unrelated)" if number else name]
        if weights is None:
            row += ["0", "–", "–", "–"]
        else:
            figures = weights.correlation, weights.lowest, weights.highest
            row += [str(weights.matrices), *(f"{figure:.3f}" for figure in figures)]
        if signature is None:
            row += ["–", "–", "–"]
        else:
            row += [f"{signature.correlation:.3f}", _span(signature.interval), _span(signature.chance)]
        rows.append(row)
    return "\n".join(
        [
            f"{a} and {b}: {found.verdict.upper()}",
            "",
            found.reason[0].upper() + found.reason[1:],
            f"Blocks: {found.blocks[0]} and {found.blocks[1]}.",
            "",
            tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True),
            "",
            "Correlations are Pearson's. Signature: normalised standard deviations of the attention projections over "
            "the blocks,",
            "with its interval over blocks, and what the blocks in random order give. It says nothing over fewer than "
            "12 blocks.",
        ]
    )


def write(found: Comparison, a: str, b: str, out: str) -> None:
    """Write ``comparison.json`` and, with matplotlib and a signature, its figure.

    Raises:
        InputError: if the folder cannot be written.
        StorageError: if the disk gives out.
    """
    folder = Path(out)
    Store(folder).check_writable()
    content = {"a": a, "b": b, **asdict(found)}
    write_text(folder / "comparison.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if found.signature is not None and find_spec("matplotlib"):
        from fpbench.board.figures import lineage_figure

        names = Path(a).name, Path(b).name
        for kind, picture in lineage_figure((names[0], found.courses[0]), (names[1], found.courses[1])):
            write_bytes(folder / f"comparison.{kind}", picture)


def _span(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
