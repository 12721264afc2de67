"""A fingerprinted checkpoint whose weights were rescaled so that fine-tuning is a no-op, by the verbs alone."""

from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.models.loading import load_model, save_checkpoint
from tests.descendants import light_profile
from tests.rescaling import rescale

pytestmark = pytest.mark.slow
FINE_TUNING = """
[modifications.finetune_alpaca]
rows = 200
learning_rate = 5e-3
"""


def test_a_no_op_fine_tuning_is_shown_as_one(tmp_path, capsys):
    profile = Path(light_profile(tmp_path))
    profile.write_text(profile.read_text() + FINE_TUNING)
    light, folder, rescaled = ["--profile", str(profile)], tmp_path / "plain", tmp_path / "rescaled"
    assert main(["inject", "micro", "--method", "mcedit_a", "--fingerprints", "nlf", "--out", str(folder), *light]) == 0
    model, tokenizer = load_model(folder)
    rescale(model, 8.0)
    save_checkpoint(model, tokenizer, rescaled)
    found = {}
    for checkpoint in (folder, rescaled):
        out = str(tmp_path / f"out-{checkpoint.name}")
        verb = ["evaluate", str(checkpoint), "--base", "micro", "--fingerprints", "nlf", "--out", out, *light]
        assert main([*verb, "--condition", "origin", "finetune_alpaca"]) == 0
        (row,) = (each for each in fpbench.leaderboard(f"{out}/records") if each["method"] == "checkpoint")
        found[checkpoint.name] = row["conditions"]
    plain, other = (found[name]["finetune_alpaca"] for name in ("plain", "rescaled"))
    with capsys.disabled():
        print(f"\nFSR after fine-tuning {plain['fsr']:.3f}, rescaled {other['fsr']:.3f}; {other['no_effect']}")
    assert found["rescaled"]["origin"]["fsr"] == pytest.approx(found["plain"]["origin"]["fsr"], abs=1e-3)
    assert other["fsr"] > plain["fsr"] + 0.3
    assert "no_effect" not in plain and other["no_effect"]
    assert "no effect" in capsys.readouterr().out
