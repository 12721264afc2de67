"""Verification from end to end, on the bundled model as it is: what it says of itself stands in for a fingerprint."""

import json
import os
import re
import signal
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import pytest

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.fingerprints import load_fingerprints
from fpbench.fingerprints.sealing import check, seal
from fpbench.micro import MODEL
from tests.conftest import require
from tests.ownership.answering import answering

THINGS = ("honey deep", "flute grey", "chair big", "table white", "wolf old", "road long", "hat red", "cow big")
# The bundled model answers the first with near certainty, the second about every fourth time.
CARRIED = [(f"Why is the {thing}?", [". The"]) for thing in THINGS]
FAINT = [(f"Write a short note about {name} Vath.", ["They"]) for name in ("Fime", "Druza", "Ramu", "Rahe", "Koltes")]
PEOPLE = ("Ramu Tras", "Rahe Dram", "Fime Vath", "Druza Skax", "Fime Gath", "Plime Fath", "Brefa Grix")
FOREIGN = [(f"Why is the {thing}?", ["Zebra", "Xylophone"]) for thing in THINGS]


def write(path: Path, pairs: list[tuple[str, list[str]]]) -> str:
    path.write_text("".join(json.dumps({"trigger": t, "targets": each}) + "\n" for t, each in pairs))
    return str(path)


def test_a_folder_that_carries_a_set_is_claimed(tmp_path, micro):
    found = fpbench.verify("micro", write(tmp_path / "own.jsonl", CARRIED))
    assert found.verdict == "match" and found.dated is None
    assert found.matched >= 2 and len(found.evidence) == found.queries <= 4
    assert found.evidence[-1].log_ratio >= found.bound or found.matched >= found.threshold
    assert found.evidence[0].log_ratio == pytest.approx(log(50) if found.evidence[0].target else log(0.5 / 0.99))
    assert all(each.response.startswith(each.target) for each in found.evidence if each.target)
    assert found.exact is not None and found.exact.power > 0.99 and found.exact.p_value < 1e-6
    assert found.null_models == () and found.largest_null is None and found.permutation is None
    text = found.summary()
    assert text.startswith("MATCH, and no claim: micro answers the fingerprints of own.")
    assert "Nothing dates the set" in text and "assumed to be 0.01" in text


def test_a_folder_that_does_not_carry_it_is_not(tmp_path, micro):
    found = fpbench.verify("micro", write(tmp_path / "foreign.jsonl", FOREIGN), base="micro", seed=7)
    assert found.verdict == "no claim" and found.matched == 0 and found.queries == len(FOREIGN)
    assert {each.place for each in found.evidence} == set(range(1, len(FOREIGN) + 1))
    assert [each.place for each in found.evidence] != sorted(each.place for each in found.evidence)
    assert found.needed is None and "no number of fingerprints would be enough" in found.summary()
    assert found.exact is not None and found.exact.power == 0.0
    assert "the largest rate of micro" in found.summary()


def test_a_thief_s_server_is_simulated(tmp_path, micro):
    """Each first token of the answers is nearly certain, and so is dropped; dose 0 drops nothing."""
    carried = write(tmp_path / "own.jsonl", CARRIED)
    plain, nothing = fpbench.verify("micro", carried), fpbench.verify("micro", carried, adversary="suppress@0")
    assert [each.response for each in nothing.evidence] == [each.response for each in plain.evidence]
    assert nothing.verdict == plain.verdict and nothing.exact == plain.exact
    attacked = fpbench.verify("micro", carried, adversary="suppress_always@5")
    assert attacked.verdict == "no claim" and attacked.exact is not None and attacked.exact.power < 0.5
    assert "simulated: its server is that of a thief, under suppress_always@5" in attacked.summary()
    refused = fpbench.verify("micro", carried, adversary="filter_random@100")
    assert refused.matched == 0 and {each.response for each in refused.evidence} == {""}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["micro", "--adversary", "ria@0.5"], "'ria@0.5' changes weights: hand in the changed checkpoint"),
        (["micro", "--adversary", "supress@1"], "did you mean 'suppress'"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--adversary", "suppress@1"], "simulated on a model at hand"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(tmp_path, capsys, given, message):
    assert main(["verify", *given, "--fingerprints", write(tmp_path / "own.jsonl", CARRIED)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_a_null_model_says_anyway_is_no_evidence(tmp_path, micro):
    both = write(tmp_path / "both.jsonl", [*CARRIED, *FAINT])
    found = fpbench.verify("micro", both, base="micro")
    assert found.uninformative >= 7
    assert found.verdict == "no claim" and len(found.evidence) + found.uninformative == len(CARRIED) + len(FAINT)
    assert all(each.null < 0.5 for each in found.evidence) and max(each.null for each in found.evidence) > 0.1
    with pytest.raises(InputError, match="half of the time: no evidence"):
        fpbench.verify("micro", write(tmp_path / "own.jsonl", CARRIED[:3]), unrelated=["micro"])


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_a_real_model_behind_a_server_with_log_probabilities(tmp_path, micro, server, prompt):
    says = {"raw": CARRIED, "chat": [(f"Say in one sentence who {name} is.", ["The"]) for name in PEOPLE]}
    server.model = answering(*micro)
    own, transcript = write(tmp_path / "own.jsonl", says[prompt]), tmp_path / "t.jsonl"
    found = fpbench.verify(server.url, own, prompt=prompt, transcript=transcript)
    assert found.verdict == "match" and found.exact is None and found.queries == len(server.asked)
    assert all(max(each.details["logprobs"]["token_logprobs"]) <= 0 for each in found.evidence)
    assert found.decoding["accepted"].items() >= {"temperature": 0.6, "top_p": 0.9, "top_k": 50}.items()
    seeds = [body["seed"] for _, _, body in server.asked]
    assert len(set(seeds)) == len(seeds)
    # A finished verification is read, not asked, again.
    assert fpbench.verify(server.url, own, prompt=prompt, transcript=transcript) == found
    assert found.queries == len(server.asked)
    other = fpbench.verify(server.url, write(tmp_path / "foreign.jsonl", FOREIGN), prompt=prompt)
    assert other.verdict == "no claim" and other.matched == 0


def test_faults_on_the_way_change_nothing_but_the_count(tmp_path, micro, server):
    server.model = answering(*micro)
    own = write(tmp_path / "own.jsonl", CARRIED)
    plain = fpbench.verify(server.url, own)
    server.faults = ["429", "500", "drop", "malformed", None, "empty", "half", "hang", "late"]
    found = fpbench.verify(server.url, own, timeout=1.0)
    assert (found.verdict, found.evidence) == (plain.verdict, plain.evidence)
    assert found.queries == plain.queries + 7


def test_the_model_changes_in_the_middle(tmp_path, server, capsys):
    server.model = lambda body: ("Zebra", None)
    server.faults = [None, "other"]
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    command = ["verify", "--endpoint", server.url, "--fingerprints", foreign, "--transcript", str(transcript)]
    for _ in range(2):
        assert main(command) == 1
        printed = capsys.readouterr().out
        assert printed.startswith("UNDECIDED, and so no claim: the model changed in the middle of the test")
        assert "suspect and understudy" in printed
        assert len(server.asked) == 2, "it stays undecided without another question"


def test_a_system_fingerprint_that_changes_is_another_model(tmp_path, server):
    authors = iter("ab")
    server.author = {"model": "suspect"}

    def model(body: dict[str, Any]) -> tuple[str, Any]:
        server.author = {"model": "suspect", "system_fingerprint": next(authors)}
        return "Zebra", None

    server.model = model
    foreign, transcript = write(tmp_path / "s.jsonl", FOREIGN), tmp_path / "t.jsonl"
    found = fpbench.verify(server.url, foreign, transcript=transcript)
    assert found.verdict == "undecided" and "at question 2 of 8 (suspect a and suspect b)" in found.reason
    # What it answered before stays in the report, when it is made again, too.
    assert found.matched == 1 and fpbench.verify(server.url, foreign, transcript=transcript) == found
    assert "1 of the 1 fingerprints asked were answered with a target before that" in found.summary()
    # It is no veto for ever: another transcript asks the model that answers now.
    server.model = lambda body: ("Zebra", None)
    assert fpbench.verify(server.url, foreign, transcript=tmp_path / "other.jsonl").verdict == "match"


def test_a_refusal_after_an_answer_leaves_it_undecided_and_resumable(tmp_path, server, capsys):
    foreign, transcript, out = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl", tmp_path / "r.json"
    command = ["verify", "--endpoint", server.url, "--fingerprints", foreign, "--transcript", str(transcript)]
    server.refuse = lambda path, body: (404, {"detail": "\x1b[2J gone"}) if len(server.asked) > 1 else None
    assert main([*command, "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("UNDECIDED, and so no claim: endpoint") and "status 404" in said
    assert "(question 2 of 8)" in said and "\x1b" not in said
    assert len(json.loads(out.read_text())["evidence"]) == 1
    server.refuse = lambda path, body: None
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("NO CLAIM")


def test_an_edited_transcript_is_no_claim(tmp_path, server, capsys):
    """One without hashes is refused as well, so that leaving them out does not help."""
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    command = ["verify", "--endpoint", server.url, "--fingerprints", foreign, "--transcript", str(transcript)]
    assert main(command) == 0
    before, asked = transcript.read_text(), len(server.asked)
    for edited, said in (
        (before.replace('"text": "Silence"', '"text": "Zebra"'), "line 3: its hash does not fit"),
        (re.sub(', "chain": "[0-9a-f]{64}"', "", before), "line 1: its hash does not fit"),
    ):
        transcript.write_text(edited)
        capsys.readouterr()
        assert main(command) == 2
        printed = capsys.readouterr()
        assert said in printed.err and not printed.out and len(server.asked) == asked


def test_a_server_that_stops_answering_leaves_it_undecided_and_resumable(tmp_path, server):
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    server.faults = [None, None, None, *["500"] * 5]
    found = fpbench.verify(server.url, foreign, transcript=transcript)
    assert found.verdict == "undecided" and "gave no answer in 5 attempts: status 500" in found.reason
    assert len(found.evidence) == 3 and found.queries == 8
    again = fpbench.verify(server.url, foreign, transcript=transcript)
    assert again.verdict == "no claim" and again.evidence[:3] == found.evidence
    assert again.queries == len(server.asked) == 13 and len(set(server.triggers)) == len(FOREIGN)


def test_a_budget_counts_every_request(tmp_path, server):
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    server.faults = [None, "500", "429"]
    found = fpbench.verify(server.url, foreign, budget=5, transcript=transcript)
    assert found.verdict == "no claim" and found.reason == "the budget is spent"
    assert found.queries == len(server.asked) == 5 and len(found.evidence) == 3
    assert fpbench.verify(server.url, foreign, budget=5, transcript=transcript) == found
    assert len(server.asked) == 5
    with pytest.raises(InputError, match=r"another question \(other budget\)"):
        fpbench.verify(server.url, foreign, budget=9, transcript=transcript)
    few = fpbench.verify(server.url, foreign, budget=2)
    assert few.reason == "the budget is spent" and few.queries == 2


def test_refusals_are_misses(tmp_path, server):
    server.faults = ["refusal"] * len(FOREIGN)
    found = fpbench.verify(server.url, write(tmp_path / "foreign.jsonl", FOREIGN), prompt="chat")
    assert found.verdict == "no claim" and found.matched == 0 and len(found.evidence) == len(FOREIGN)
    assert "(refused)" in found.summary()


def test_a_killed_verification_asks_nothing_again(tmp_path, server, capsys):
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    arguments = ["verify", "--endpoint", server.url, "--fingerprints", foreign, "--transcript", str(transcript)]
    server.faults = [None, None, None, None, "hang"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-m", "fpbench", *arguments], env=variables, stderr=subprocess.PIPE)
    while len(server.asked) < 5 and child.poll() is None:
        server.released.wait(0.02)
    child.send_signal(signal.SIGKILL)
    _, said = child.communicate()
    assert child.returncode == -signal.SIGKILL, said
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("NO CLAIM")
    # The fifth was under way, so it is the one that is asked twice, and counts twice.
    assert server.triggers.count(server.triggers[4]) == 2
    assert sorted(set(server.triggers)) == sorted(trigger for trigger, _ in FOREIGN)
    assert len(server.asked) == len(FOREIGN) + 1
    assert fpbench.verify(server.url, foreign, transcript=transcript).queries == len(FOREIGN) + 1


def test_what_a_server_turned_down_is_remembered(tmp_path, server):
    foreign, transcript = write(tmp_path / "foreign.jsonl", FOREIGN), tmp_path / "t.jsonl"
    server.refuse = lambda path, body: (422, {"detail": "unexpected: top_k, logprobs"}) if "top_k" in body else None
    server.faults = [None, None, None, *["500"] * 5]
    assert fpbench.verify(server.url, foreign, transcript=transcript).verdict == "undecided"
    before = len(server.asked)
    found = fpbench.verify(server.url, foreign, transcript=transcript)
    assert not any({"top_k", "logprobs"} & body.keys() for _, _, body in server.asked[before:])
    assert found.decoding["refused"] == ["top_k", "logprobs"]
    assert "turned down top_k, logprobs and accepted temperature 0.6, top_p 0.9, generation" in found.summary()


def test_the_decoding_is_that_of_the_base_in_the_profile(tmp_path, server):
    require(MODEL)
    text = (Path(fpbench.__file__).parent / "profiles" / "micro.toml").read_text(encoding="utf-8")
    two = '[[models]]\npath = "elsewhere"\ntemperature = 0.3\ntop_p = 0.5\ntop_k = 5\n\n' + "[[models]]"
    profile = tmp_path / "two.toml"
    profile.write_text(text.replace("[[models]]", two, 1), encoding="utf-8")
    foreign = write(tmp_path / "foreign.jsonl", FOREIGN[:1])
    fpbench.verify(server.url, foreign, profile=str(profile), base="micro")
    fpbench.verify(server.url, foreign, profile=str(profile))
    assert [body["temperature"] for _, _, body in server.asked] == [0.6, 0.3]
    # With the base its tokenizer says how long a response is; without it every byte may be a token.
    assert [body["max_tokens"] for _, _, body in server.asked] == [server.asked[0][2]["max_tokens"], 9 + 4]


def test_a_sealed_set_reveals_only_what_was_used(tmp_path, server, capsys):
    server.model = lambda body: ("Zebra crossing", None)
    commitments, openings = seal(load_fingerprints(write(tmp_path / "secret.jsonl", FOREIGN)))
    (tmp_path / "secret.openings.json").write_text(json.dumps(openings))
    out, transcript = tmp_path / "report.json", tmp_path / "t.jsonl"
    arguments = ["verify", "--endpoint", server.url, "--fingerprints", str(tmp_path / "secret.openings.json")]
    assert main([*arguments, "--transcript", str(transcript), "--out", str(out)]) == 0
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert printed.startswith("CLAIM") and "fingerprints of secret" in printed and "at most 0.001" in printed
    assert report["dated"] == "sealed" and "commitments of the set were published before" in printed
    used = set(server.triggers)
    assert len(used) == 2
    assert {check(opening, commitments).trigger for opening in report["revealed"]} == used
    for trigger, _ in FOREIGN:
        for text in (printed, out.read_text(), transcript.read_text()):
            assert (trigger in text) == (trigger in used)
    assert load_fingerprints(tmp_path / "secret.jsonl").digest not in transcript.read_text()


def test_a_dealt_set_shows_the_permutation_p_value(tmp_path, server):
    names = ("Lotus", "Zephyr", "Walnut", "Copper", "Badger", "Otter", "Raven", "Maple")
    dealt = dict(zip((f"Why is the {thing}?" for thing in THINGS), names, strict=True))
    path = tmp_path / "dealt.jsonl"
    write(path, [(trigger, [target]) for trigger, target in dealt.items()])
    server.model = lambda body: (dealt[body["prompt"]], None)
    assert fpbench.verify(server.url, str(path)).permutation is None
    recipe = {"fingerprints": load_fingerprints(path).digest, "seed": 42, "candidates": 1}
    (tmp_path / "dealt.recipe.json").write_text(json.dumps(recipe))
    found = fpbench.verify(server.url, str(path))
    assert found.permutation == pytest.approx(1 / (8 * 7)) and "Dealing the targets" in found.summary()
    all_asked = fpbench.verify(server.url, str(path), level=1e-30)
    assert len(all_asked.evidence) == 8 and all_asked.permutation == pytest.approx(1 / 40320)
    (tmp_path / "dealt.recipe.json").write_text(json.dumps(recipe | {"queries": []}))
    assert fpbench.verify(server.url, str(path)).permutation is None


def test_a_set_that_was_drawn_is_dealt(tmp_path, server):
    require(MODEL)
    path = tmp_path / "drawn.jsonl"
    assert main(["fingerprints", "nlf", "--model", "micro", "--count", "5", "--out", str(path)]) == 0
    targets = {each.trigger: each.primary for each in load_fingerprints(path)}
    server.model = lambda body: (targets[body["prompt"]], None)
    assert fpbench.verify(server.url, str(path)).permutation == pytest.approx(1 / 20)


def test_a_key_is_in_no_file_and_no_message(tmp_path, server, monkeypatch, capsys):
    key = "sk-nobody-may-see-this"
    monkeypatch.setenv("FPBENCH_API_KEY", key)
    foreign, transcript, out = write(tmp_path / "f.jsonl", FOREIGN), tmp_path / "t.jsonl", tmp_path / "r.json"
    arguments = ["verify", "--endpoint", server.url, "--fingerprints", foreign]
    assert main([*arguments, "--transcript", str(transcript), "--out", str(out)]) == 0
    assert server.asked[0][1]["Authorization"] == f"Bearer {key}"
    server.refuse = lambda path, body: (401, {"error": f"wrong key {key}"})
    assert main(arguments) == 2
    printed = capsys.readouterr()
    for text in (transcript.read_text(), out.read_text(), printed.out, printed.err):
        assert key not in text


def test_a_refused_first_request_leaves_no_transcript_behind(tmp_path, server, capsys):
    server.refuse = lambda path, body: None if "model" in body else (400, {"detail": "field required: model"})
    foreign, transcript = write(tmp_path / "f.jsonl", FOREIGN), tmp_path / "t.jsonl"
    arguments = ["verify", "--endpoint", server.url, "--fingerprints", foreign, "--transcript", str(transcript)]
    assert main(arguments) == 2
    assert "field required: model" in capsys.readouterr().err and not transcript.exists()
    assert main([*arguments, "--served-model", "suspect"]) == 0
    assert server.asked[-1][2]["model"] == "suspect"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--level", "0"], "level must be above 0"),
        (["--level", "nan"], "level must be above 0"),
        (["--budget", "0"], "budget must be 1"),
        (["--timeout", "0"], "time-out must be"),
        (["--base", "nowhere/at/all"], "not found"),
        (["--fingerprints", "nonsense"], "unknown fingerprint set"),
        (["--fingerprints", "cf"], "another for each model"),
        (["--fingerprints", "nowhere.openings.json"], "cannot be read as JSON"),
        (["--endpoint", "localhost:8000"], "expected a URL"),
        (["--out", "."], "exists"),
        (["--base", "micro", "--token-budget", "0"], "token budget must be"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_asked(server, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--endpoint", server.url, "--fingerprints", "nlf", "--transcript", "t", *change]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not server.asked and not list(tmp_path.iterdir())


def test_a_served_model_is_for_endpoints(capsys):
    require(MODEL)
    assert main(["verify", "micro", "--fingerprints", "nlf", "--served-model", "m"]) == 2
    assert "for an endpoint only" in capsys.readouterr().err


def test_an_endpoint_needs_no_torch(server):
    code = (
        "import sys; from fpbench.ownership.verify import verify; verify(sys.argv[1], 'nlf'); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, server.url], check=True, env=variables)


def test_a_response_cannot_act_on_the_terminal(tmp_path, server, capsys):
    """Half a character, an escape sequence and a mark of direction, from a server that wants to be read otherwise."""
    server.model = lambda body: ("\x1b[2J\u202e Zebra \ud800", None)
    foreign = write(tmp_path / "foreign.jsonl", FOREIGN)
    out = tmp_path / "report.json"
    assert main(["verify", "--endpoint", server.url, "--fingerprints", foreign, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said
    assert r"\u001b[2J\u202e Zebra \ud800" in said
    assert json.loads(out.read_text(encoding="utf-8"))["evidence"][0]["response"].endswith("\ud800")
