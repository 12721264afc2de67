"""A fingerprinted checkpoint whose weights were rescaled so that fine-tuning is a no-op, by the verbs alone."""

import pytest

import fpbench
from fpbench.cli import main
from fpbench.models.loading import load_model, save_checkpoint
from tests.rescaling import rescale

pytestmark = pytest.mark.slow


def row_of(checkpoint, out):
    conditions = ["origin", "finetune_alpaca"]
    rows = fpbench.evaluate(str(checkpoint), "nlf", base="micro", conditions=conditions, out=str(out))
    (row,) = (each for each in rows if each["method"] == "checkpoint")
    return row["conditions"]["finetune_alpaca"]


def test_a_no_op_fine_tuning_is_shown_as_one(tmp_path, capsys):
    folder, rescaled = tmp_path / "plain", tmp_path / "rescaled"
    assert main(["inject", "micro", "--method", "fpedit", "--fingerprints", "nlf", "--out", str(folder)]) == 0
    model, tokenizer = load_model(folder)
    rescale(model, 8.0)
    save_checkpoint(model, tokenizer, rescaled)
    plain, other = (row_of(each, tmp_path / f"out-{each.name}") for each in (folder, rescaled))
    print(plain["fsr"], other["fsr"], other["no_effect"])
    assert "no_effect" not in plain and other["no_effect"].startswith("finetune_alpaca: the loss fell by")
    assert other["fsr"] > plain["fsr"] + 0.3
    assert main(["leaderboard", "--records", str(tmp_path / "out-rescaled" / "records")]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "| checkpoint" in each and "no effect" in each)
    assert "re-scored" in line
