"""Profiles of grids on the bundled model: of half a minute, and of seconds."""

import json
from pathlib import Path

SMALL = """
methods = ["mcedit_a"]
fingerprints = ["nlf"]
conditions = ["origin", "finetune_alpaca", "int8", "nf4", "ria30"]

[[models]]
name = "micro"
path = "micro"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "bundled:alpaca.jsonl"
math = "bundled:math.jsonl"
calibration = "bundled:text.jsonl"
statistics = "bundled:text.jsonl"
zsre = "bundled:zsre.jsonl"
boolq = "bundled:boolq.jsonl"
rte = "bundled:rte.jsonl"
arc_challenge = "bundled:arc.jsonl"
tinymmlu = "bundled:mmlu.jsonl"
wikitext = "bundled:prose.txt"

[sizes]
context_rows = 2
substitutions = 20
substitute_words = 40
near_triggers = 10
band_texts = 100
statistics_tokens = 4000
utility_limit = 8

[modifications.finetune_alpaca]
rows = 16
epochs = 2
batch_size = 8
learning_rate = 2e-4

[modifications.ria30]
samples = 2
"""

SHORT = ("origin", "nf4")
CONDITIONS = ("origin", "finetune_alpaca", "int8", "nf4", "ria30")
SIZES = {
    "substitutions = 20": "substitutions = 2",
    "substitute_words = 40": "substitute_words = 4",
    "near_triggers = 10": "near_triggers = 2",
    "band_texts = 100": "band_texts = 4",
    "utility_limit = 8": "utility_limit = 2",
}
LEFT_OUT = ("boolq = ", "arc_challenge = ", "tinymmlu = ", "wikitext = ")  # one task is enough to see that it travels


def write_tiny(path: Path, conditions: tuple[str, ...]) -> Path:
    """The small grid made smaller; one thread, so that every engine adds in the same order."""
    text = SMALL
    for known, smaller in SIZES.items():
        assert known in text
        text = text.replace(known, smaller)
    lines = [f"conditions = {json.dumps(conditions)}" if "conditions" in line else line for line in text.splitlines()]
    lines = [line for line in lines if not line.startswith(LEFT_OUT)]
    path.write_text("threads = 1\n" + "\n".join(lines))
    return path
