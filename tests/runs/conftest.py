"""A small grid on the bundled model, run once for all tests that look at its records."""

from pathlib import Path

import pytest

from fpbench.micro import MODEL
from tests.conftest import require

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
statistics_tokens = 40000
utility_limit = 8

[modifications.finetune_alpaca]
rows = 24
epochs = 2
batch_size = 8
learning_rate = 2e-4

[modifications.ria30]
samples = 8
"""


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory) -> str:
    require(MODEL)
    path = tmp_path_factory.mktemp("profile") / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture(scope="session")
def small_run(small_profile, tmp_path_factory) -> Path:
    """The folder of a finished run of the small grid."""
    import fpbench

    out = tmp_path_factory.mktemp("run")
    records = fpbench.run(small_profile, out=out)
    assert all(record["status"] == "done" for record in records), [r["reason"] for r in records if "reason" in r]
    return out
