"""The paper's own figures as rows: reported by its authors, not reproduced here."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "reported.json"
# Table 1 has one figure a method and condition and does not say which set the baselines used (docs/methods.md §6).
SET = "as published"


@cache
def figures() -> dict[str, Any]:
    """All tables of arXiv 2509.03122v3 that name a figure, in its own units."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def reported_rows() -> list[dict[str, Any]]:
    """One row a model and method of arXiv 2509.03122v3, fractions instead of percent."""
    published = figures()
    rows = []
    for key, model in published["models"].items():
        utility = published["effectiveness_and_utility"][key]
        for method, found in utility.items():
            modified = published["detectability_fsr_sampled"][key].get(method, {})
            conditions = {
                name: {"fsr": value / 100} for name, value in modified.items() if name != "avg_of_six_modifications"
            }
            # LoRA and the base stand only in the paper's effectiveness table.
            conditions.setdefault("origin", {"fsr": found["fsr_sampled"] / 100})
            conditions["origin"] |= {"greedy": found["fsr_greedy"] // 10, "n": 10}
            average = modified.get("avg_of_six_modifications")
            rows.append(
                {
                    "model": model,
                    "method": "base" if method == "none" else method,
                    "fingerprints": SET,
                    "trust": "reported",
                    "protocol": None,
                    "conditions": conditions,
                    "avg": None if average is None else average / 100,
                    "utility": _utility(found, utility["none"], method),
                    "triggers": None,
                    "near": None,
                    "bands": None,
                    "claim": None,
                    "cost": None,
                    "provenance": [],
                    "rank": None,
                    "failed": [],
                    "unreliable": None,
                    "source": published["source"],
                }
            )
    return rows


def _utility(found: dict[str, Any], base: dict[str, Any], method: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "accuracy": found["accuracy_avg"] / 100,
        "token_perplexity": {"perplexity": found["wikitext2_ppl"], "length": 2048},
    }
    if method != "none":
        shown["difference"] = {
            "accuracy": (found["accuracy_avg"] - base["accuracy_avg"]) / 100,
            "token_perplexity": found["wikitext2_ppl"] / base["wikitext2_ppl"] - 1,
        }
    return shown
