"""The table of a study: one line a variant, with what the paper reports for it."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from fpbench.board import cells

Row = dict[str, Any]
HEADERS = [
    "model",
    "variant",
    "FSR at origin",
    "RIA 40 %",
    "AVG of six",
    "accuracy Δ",
    "perplexity Δ",
    "triggers",
    "PPL of triggers",
    "bands",
    "paper: RIA 40 %",
    "paper: accuracy",
]
LEGEND = """\
Exact FSR in % [95 % interval over fingerprints]; Δ: difference from the unfingerprinted base; triggers: mean rate of
the eight accidental-trigger conditions, in % (and how many of the set's triggers any query activates); PPL: mean
perplexity of the set's triggers under the base; bands: triggers of normal/marginal/abnormal perplexity. The paper's
figures are its authors', for Llama-3.2-3B-Instruct with MCEdit_A on its own code-mixed set, sampled; what they can
share with ours is the direction, not the value."""


def study_table(question: str, variants: list[tuple[str, Row]], reported: Mapping[str, Any]) -> str:
    """A study as Markdown.

    Args:
        question: what it asks.
        variants: what each row is called in the study, with its leaderboard row.
        reported: what the paper has for a row, by the row's name in the study.
    """
    lines = []
    for name, row in variants:
        paper = reported.get(name, {})
        lines.append(
            [
                row["model"],
                name,
                cells.fsr(row, "origin"),
                cells.fsr(row, "ria40"),
                cells.average(row),
                cells.accuracy(row),
                cells.perplexity(row),
                cells.triggers(row),
                cells.trigger_perplexity(row),
                cells.bands(row),
                paper.get("detectability_ria40", cells.NONE),
                paper.get("accuracy", cells.NONE),
            ]
        )
    table = tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True)
    return f"# {question}\n\n{table}\n\n{LEGEND}\n"
