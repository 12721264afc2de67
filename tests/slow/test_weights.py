"""A run with weights adversaries that need calibration and siblings, alone and with a run-time part, priced."""

import pytest

import fpbench
from fpbench.records.store import Store, read_records
from tests.runs.grids import SMALL

pytestmark = pytest.mark.slow
CONDITIONS = ["origin", "prune_restore@0.3", "prune_restore@0.3+suppress@3", "prune_restore_heads@0.5"]
CONDITIONS += ["ria@0.3+finetune_math@3", "ria@0.3+finetune_math@6"]
SETTINGS = """
[modifications.finetune_math]
rows = 24
learning_rate = 1e-3

[modifications.prune_restore]
rows = 24
steps = 10
batch_size = 4
learning_rate = 1e-3
samples = 4

[modifications.prune_restore_heads]
samples = 4
probes = 2

[modifications.ria]
samples = 4
"""


def profile(folder):
    """Write two seeds, three methods and little of everything; return the file."""
    text = SMALL.replace('methods = ["mcedit_a"]', 'seeds = [42, 43]\nmethods = ["mcedit_a", "alphaedit", "fpedit"]')
    text = text.replace("[data]", '[data]\nanswers = "bundled:zsre.jsonl"')
    unused = ("boolq = ", "rte = ", "arc_challenge = ", "tinymmlu = ")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(unused))
    text = text.replace("[sizes]", "[sizes]\nprice_instructions = 8\nprice_answers = 8\nperplexity_windows = 2")
    path = folder / "weights.toml"
    path.write_text(text + SETTINGS)
    return path


def test_every_cell_is_measured_priced_and_proven(tmp_path):
    out = tmp_path / "run"
    fpbench.run(str(profile(tmp_path)), methods=["mcedit_a"], seeds=[42], conditions=CONDITIONS, out=out)
    found = {str(each.cell): each for each in read_records(Store(out).records)}
    assert [name for name, each in found.items() if each.status == "failed"] == []
    proofs = {}
    for condition in CONDITIONS[1:]:
        place = f"micro/nlf/mcedit_a/seed-42/{condition}"
        assert set(found[f"{place}/price"].result) >= {"responses", "answers", "text"}
        assert found[f"{place}/price"].result["text"]["perplexity"] > 1
        proofs[condition] = found[f"{place}/fsr"].proof["modification"]
    assert proofs["prune_restore@0.3"] == proofs["prune_restore@0.3+suppress@3"]
    short, long = (proofs[f"ria@0.3+finetune_math@{steps}"] for steps in (3, 6))
    assert short["ria@0.3"] == long["ria@0.3"]
    assert (short["finetune_math@3"]["steps"], long["finetune_math@6"]["steps"]) == (3, 6)
    assert b"Removal" in (out / "leaderboard.md").read_bytes()


def test_siblings_of_two_seeds_are_trimmed_and_merged(tmp_path):
    out = tmp_path / "run"
    fpbench.run(str(profile(tmp_path)), conditions=["merge_ties@0.5"], out=out)
    merged = [each for each in read_records(Store(out).records) if each.cell.condition == "merge_ties@0.5"]
    assert {each.status for each in merged} == {"done"}
    assert {each.cell.method for each in merged} == {"mcedit_a", "alphaedit", "fpedit"}, "the base has nothing to trim"
