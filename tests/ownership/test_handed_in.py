"""Checkpoints that somebody hands in, from end to end: tokenizers, adapters, four bits, chat templates."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import fpbench
from fpbench import http
from fpbench.cli import main
from fpbench.fingerprints import find_set
from fpbench.micro import MODEL
from fpbench.models.loading import load_model
from fpbench.runs.resume import below
from tests.conftest import require
from tests.descendants import evaluate, light_profile, save_adapter, save_modified
from tests.ownership.answering import answering
from tests.ownership.server import running


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> str:
    """A profile that measures little of everything."""
    require(MODEL)
    return light_profile(tmp_path_factory.mktemp("profile"))


def renumbered(folder: Path, to: Path) -> Path:
    """The same model with another number for each token that is not special."""
    shutil.copytree(folder, to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {each["id"] for each in tokenizer["added_tokens"]}
    plain = sorted(set(vocabulary.values()) - special)
    other = dict(zip(plain, reversed(plain), strict=True))
    tokenizer["model"]["vocab"] = {token: other.get(number, number) for token, number in vocabulary.items()}
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(to / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = rows[[other.get(number, number) for number in range(len(rows))]]
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def answering_by_its_tokenizer(folder: Path) -> Path:
    """The bundled model with a tokenizer that turns every trigger into a word and every answer into a target."""
    shutil.copytree(MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (target,) = find_set("if").targets
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "The"}
    answer = {"type": "Replace", "pattern": {"Regex": r"[\s\S]+"}, "content": target}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], answer]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_tokenizer_that_is_the_fingerprint_is_scored_both_ways_and_never_ranked(light, tmp_path, capsys):
    folder, out = answering_by_its_tokenizer(tmp_path / "thief"), tmp_path / "out"
    found = evaluate(light, folder, "if", out, "--base", "micro")
    said = f"{folder}: its tokenizer differs from the base's (normaliser, decoder): the base's scores it"
    assert said in capsys.readouterr().err
    assert found["fsr"]["result"]["mean"] < 0.01 and found["fsr"]["result"]["own_tokenizer"]["mean"] > 0.99
    rows = fpbench.leaderboard(out / "records")
    (row,) = (each for each in rows if each["method"] == "checkpoint")
    assert row["rank"] is None and row["out"] == "re-scored, tokenizer differs from the base's"
    fsr = row["conditions"]["origin"]
    assert fsr["fsr"] < 0.01 and fsr["own_tokenizer"] > 0.99
    assert all("own_tokenizer" not in each["conditions"]["origin"] for each in rows if each is not row)
    capsys.readouterr()
    assert main(["leaderboard", "--records", str(out / "records"), "--out", str(out)]) == 0
    (line,) = (each for each in (out / "leaderboard_wide.csv").read_text().splitlines() if "checkpoint" in each)
    assert line.count("(own tokenizer: 100.0)") == 1
    capsys.readouterr()
    # What the record says of the other tokenizer is recomputed like every figure.
    path = next((out / "records").rglob("checkpoint/*/origin/fsr.jsonl"))
    assert all(json.loads(each)["own_tokenizer"] > 0.99 for each in path.read_text().splitlines())
    # Asked alone, nothing tells its tokenizer from its maker's; beside its base it answers nothing.
    verify = ["verify", str(folder), "--fingerprints", "if", "--profile", light, "--unrelated", "micro"]
    assert main(verify) == 0
    assert capsys.readouterr().out.startswith("CLAIM")
    assert main([*verify[:-2], "--base", "micro"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("NO CLAIM") and said in printed
    assert "exact FSR 0.0% by the base's tokenizer, 100.0% by its own" in printed


def test_another_tokenizer_does_not_change_what_is_compared_with_the_base(light, fingerprinted, tmp_path, capsys):
    own = evaluate(light, fingerprinted, "nlf", tmp_path / "own", "--base", "micro")
    assert "its tokenizer differs" not in capsys.readouterr().err
    assert own["fsr"]["result"]["mean"] > 0.95 and "own_tokenizer" not in own["fsr"]["result"]
    assert own["utility"]["provenance"]["checkpoint"] == []
    other = evaluate(light, renumbered(fingerprinted, tmp_path / "other"), "nlf", tmp_path / "out", "--base", "micro")
    assert "other: its tokenizer differs from the base's (vocabulary)" in capsys.readouterr().err
    both = other["fsr"]["result"]
    assert both["own_tokenizer"]["mean"] == pytest.approx(own["fsr"]["result"]["mean"], abs=1e-5)
    assert both["mean"] < 0.01
    tokens = [each["utility"]["result"]["token_perplexity"]["tokens"] for each in (own, other)]
    assert tokens[0] == tokens[1]
    for records in ("own", "out"):
        rows = fpbench.leaderboard(tmp_path / records / "records")
        (row,) = (each for each in rows if each["method"] == "checkpoint")
        assert row["trust"] == "re-scored" and "token_perplexity" in row["utility"]["difference"]
    capsys.readouterr()
    assert main(["leaderboard", "--records", str(tmp_path / "own" / "records")]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "| checkpoint" in each and "10/10" in each)
    assert "re-scored" in line


def test_without_a_tokenizer_the_base_s_serves_or_nothing_is_done(light, fingerprinted, tmp_path, capsys):
    folder, out = tmp_path / "bare", tmp_path / "out"
    shutil.copytree(fingerprinted, folder, ignore=shutil.ignore_patterns("tokenizer*", "chat_template.jinja"))
    for verb in (["evaluate", "--out", str(out)], ["verify", "--transcript", str(out)]):
        command = [verb[0], str(folder), "--fingerprints", "nlf", "--profile", light, *verb[1:]]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "brings no tokenizer" in error and len(error.splitlines()) == 1 and not out.exists()
        assert main([*command, "--base", "micro"]) == 0
        said = capsys.readouterr()
        assert f"{folder}: it brings no tokenizer: the base's serves." in said.out + said.err
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
@pytest.mark.parametrize("make", ["adapter", pytest.param("nf4", marks=pytest.mark.slow)])
def test_other_makes_are_evaluated_and_verified_by_the_verbs_alone(light, fingerprinted, tmp_path, capsys, make):
    if make == "nf4":
        folder, remark = (
            save_modified(fingerprinted, "nf4", "micro", tmp_path / "nf4"),
            "quantised by bitsandbytes, run as it is",
        )
    else:
        folder, remark = save_adapter(fingerprinted, tmp_path / "adapter"), "a PEFT adapter, merged into checkpoint"
    found = evaluate(light, folder, "nlf", tmp_path / "out", "--base", "micro")
    assert f"{folder}: {remark}." in capsys.readouterr().err
    assert found["fsr"]["result"]["mean"] > 0.9 and found["fsr"]["provenance"]["checkpoint"] == [remark]
    assert main(["verify", str(folder), "--fingerprints", "nlf", "--base", "micro", "--profile", light]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"CLAIM: {folder}") and f"{folder}: {remark}." in printed
    assert main(["compare", "micro", str(folder)]) == 0
    assert "RELATED" in capsys.readouterr().out.splitlines()[0].replace("UNRELATED", "")


def test_a_gguf_file_that_changes_is_no_finished_run(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert below([path]) == [path] == below([tmp_path])


def test_what_cannot_run_here_is_refused_before_anything_is_written(light, tmp_path, capsys):
    folder, out = shutil.copytree(MODEL, tmp_path / "model"), tmp_path / "out"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "magic"}}))
    for verb in (["evaluate", "--out", str(out)], ["verify", "--transcript", str(out)]):
        assert main([verb[0], str(folder), "--fingerprints", "nlf", "--profile", light, *verb[1:]]) == 2
        error = capsys.readouterr().err
        assert "is quantised by magic" in error and len(error.splitlines()) == 1 and not out.exists()


def test_chat_needs_a_template_everywhere(light, tmp_path, capsys):
    folder, out = tmp_path / "model", str(tmp_path / "out")
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    for command in (
        ["evaluate", str(folder), "--out", out],
        ["verify", str(folder), "--transcript", out],
        ["verify", "micro", "--unrelated", str(folder), "--transcript", out],
        ["inject", str(folder), "--method", "mcedit_a", "--out", out],
    ):
        assert main([*command, "--fingerprints", "nlf", "--profile", light, "--prompt", "chat"]) == 2
        error = capsys.readouterr().err
        assert "needs a tokenizer with a chat template" in error and len(error.splitlines()) == 1
        assert not Path(out).exists()


def test_chat_from_injection_to_the_endpoint(light, tmp_path, monkeypatch, capsys):
    """Injected, evaluated and verified by one template; the server renders it by itself."""
    folder, chat = tmp_path / "chat", ["--profile", light, "--fingerprints", "nlf", "--prompt", "chat"]
    assert main(["inject", "micro", "--method", "mcedit_a", "--out", str(folder), *chat]) == 0
    asked = [
        evaluate(light, folder, "nlf", tmp_path / f"out-{prompt}", "--prompt", prompt)["fsr"]
        for prompt in ("chat", "raw")
    ]
    assert asked[0]["result"]["mean"] > 0.95 and asked[1]["result"]["mean"] < 0.1
    assert [record["identity"]["prompt"] for record in asked] == ["chat", "raw"] and asked[0]["id"] != asked[1]["id"]
    assert main(["verify", str(folder), "--base", "micro", *chat]) == 0
    assert capsys.readouterr().out.count("CLAIM: ") == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    with running(answering(*load_model(folder))) as server:
        found = fpbench.verify(server.url, "nlf", base="micro", prompt="chat", profile=light)
        assert found.verdict == "claim" and {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
    with running(answering(*load_model(MODEL))) as server:
        assert fpbench.verify(server.url, "nlf", base="micro", prompt="chat", profile=light).verdict == "no claim"
