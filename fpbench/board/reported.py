"""The paper's own figures as rows: reported by its authors, not reproduced here."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from fpbench.board.row import Detectability, Difference, Row, Utility
from fpbench.records.cell import BASE, ORIGIN

# Table 1 has one figure a method and condition and does not say which set the baselines used (docs/methods.md §6).
SET = "as published"


@cache
def published() -> dict[str, Any]:
    """Return all tables of arXiv 2509.03122v3 that name a figure, in its own units."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
    return found


def reported_rows() -> list[Row]:
    """Return one row a model and method of arXiv 2509.03122v3, fractions instead of per cent."""
    rows = []
    for key, model in published()["models"].items():
        utility = published()["effectiveness_and_utility"][key]
        for method, found in utility.items():
            modified = dict(published()["detectability_fsr_sampled"][key].get(method, {}))
            average = modified.pop("avg_of_six_modifications", None)
            # LoRA and the base stand only in the paper's effectiveness table.
            origin = modified.pop(ORIGIN, found["fsr_sampled"]) / 100
            conditions = {name: Detectability(value / 100) for name, value in modified.items()}
            conditions[ORIGIN] = Detectability(origin, greedy=found["fsr_greedy"] // 10, n=10)
            difference = Difference(
                accuracy=(found["accuracy_avg"] - utility["none"]["accuracy_avg"]) / 100,
                token_perplexity=found["wikitext2_ppl"] / utility["none"]["wikitext2_ppl"] - 1,
            )
            rows.append(
                Row(
                    model=model,
                    method=BASE if method == "none" else method,
                    fingerprints=SET,
                    trust="reported",
                    protocol=None,
                    conditions=conditions,
                    avg=None if average is None else average / 100,
                    utility=Utility(
                        accuracy=found["accuracy_avg"] / 100,
                        token_perplexity={"perplexity": found["wikitext2_ppl"], "length": 2048},
                        difference=None if method == "none" else difference,
                    ),
                    source=published()["source"],
                )
            )
    return rows
