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


def test_every_cell_is_measured_priced_and_proven(tmp_path):
    text = SMALL.replace('methods = ["mcedit_a"]', 'seeds = [42, 43]\nmethods = ["mcedit_a", "alphaedit", "fpedit"]')
    text = text.replace("[data]", '[data]\nanswers = "bundled:zsre.jsonl"')
    unused = ("boolq = ", "rte = ", "arc_challenge = ", "tinymmlu = ")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(unused))
    text = text.replace("[sizes]", "[sizes]\nprice_instructions = 8\nprice_answers = 8\nperplexity_windows = 2")
    (tmp_path / "weights.toml").write_text(text + SETTINGS)
    out = tmp_path / "run"
    fpbench.run(str(tmp_path / "weights.toml"), methods=["mcedit_a"], conditions=CONDITIONS, out=out)
    found = {str(each.cell): each for each in read_records(Store(out).records)}
    assert [name for name, each in found.items() if each.status == "failed"] == []
    for seed in (42, 43):
        for condition in CONDITIONS[1:]:
            place = f"micro/nlf/mcedit_a/seed-{seed}/{condition}"
            assert set(found[f"{place}/price"].result) >= {"responses", "answers", "text"}
            assert found[f"{place}/price"].result["text"]["perplexity"] > 1
            assert found[f"{place}/fsr"].proof["modification"]
        proofs = [found[f"micro/nlf/mcedit_a/seed-{seed}/{each}/fsr"].proof["modification"] for each in CONDITIONS]
        assert proofs[1] == proofs[2]
        assert [proofs[at]["ria@0.3"] for at in (4, 5)] == [proofs[4]["ria@0.3"]] * 2
        assert [proofs[at][CONDITIONS[at].split("+")[1]]["steps"] for at in (4, 5)] == [3, 6]
    fpbench.run(str(tmp_path / "weights.toml"), seeds=[42, 43], conditions=["origin", "merge_ties@0.5"], out=out)
    merged = [each for each in read_records(Store(out).records) if each.cell.condition == "merge_ties@0.5"]
    assert {each.status for each in merged} == {"done"}
    assert {each.cell.method for each in merged} == {"mcedit_a", "alphaedit", "fpedit"}, "the base has nothing to trim"
    assert b"Removal" in (out / "leaderboard.md").read_bytes()
