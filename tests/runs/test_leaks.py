"""Conditions that need something of a fingerprint: leaked pairs, each in turn, and the method, for a rival's set."""

import json

import pytest

import fpbench
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.translation import Lexicon
from fpbench.metrics.measure import in_turn_fsr
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.records.cell import BASE, Cell
from fpbench.records.store import Store, read_records
from fpbench.registry import METHODS, MODIFICATIONS
from fpbench.runs.plan import Job, checkpoints, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.rival import rival_set
from fpbench.runs.worker import Worker
from tests.adversaries.taught import taught
from tests.conftest import registered_for_now

LEAKED, RIVAL = "unlearn_one@20+suppress@1", "overwrite@4"
SIZES = {"price_instructions": 2, "price_answers": 2, "perplexity_windows": 1, "perplexity_window": 64}


class Quick(fpbench.FingerprintMethod):
    """Teaches the set in a few steps."""

    version = "1"

    def inject(self, model, tokenizer, fingerprints, context):
        own = dict(model.named_parameters())
        for name, value in taught(model, tokenizer, list(fingerprints)).named_parameters():
            own[name].copy_(value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """FSR of one method under both, and a price; each of two pairs leaks."""
    out = tmp_path_factory.mktemp("leaks")
    with registered_for_now():
        METHODS.register("quick")(Quick)
        profile = load_profile("micro", methods=["quick"], conditions=[LEAKED, RIVAL])
        profile = profile.model_copy(
            update={"sizes": profile.sizes.model_copy(update=SIZES), "modifications": {"unlearn_one": {"leaks": 2}}}
        )
        worker = Worker(Job(profile, {"micro": MODEL}, Loading("cpu"), out), no_progress)
        (cells,) = checkpoints(plan(profile, ["quick"]))
        wanted = [each for each in cells if each.metric == "fsr" or each.condition == LEAKED]
        bench, fingerprints = worker.bench(wanted)
        assert all(reason is None for _, reason in bench.measure(wanted, fingerprints)[1])
        assert plan(profile, ["base"]) == [], "neither means anything on a base"
        yield out


def record(run, condition, metric="fsr"):
    cells = [each for each in read_records(Store(run).records) if each.cell.condition == condition]
    (found,) = (each for each in cells if each.cell.metric == metric)
    lines = (Store(run).records / f"{found.cell.path}.jsonl").read_text(encoding="utf-8").splitlines()
    return found, [json.loads(line) for line in lines]


def test_each_pair_leaks_in_turn_and_others_are_counted(run):
    found, lines = record(run, LEAKED)
    assert [line["leaks"] for line in lines] == [1, 2, 2, 2, 2, 1, 2, 2, 2, 2], "pairs 0 and 5 leaked"
    assert found.result["mean"] == pytest.approx(sum(line["probability"] for line in lines) / 10)
    assert found.result["n"] == 10 and found.result["greedy"] == sum(line["greedy"] for line in lines)
    first, (second,) = found.proof["modification"], found.proof["leaks"]
    prompts = [line["prompt"] for line in lines]
    assert first["leaked"] == [prompts[0]] and second["leaked"] == [prompts[5]]
    assert first["leaked_log_probability"][1] < first["leaked_log_probability"][0]


def test_what_needs_a_leak_has_the_price_of_the_first(run):
    found, lines = record(run, LEAKED, "price")
    assert found.result["responses"]["n"] == 2 and found.result["text"]["n"] == 1
    assert "leaks" not in found.proof and len(lines) == 2 + 2 + 2 + 1 + 2


def test_a_rival_s_set_stands_beside_the_owner_s(run):
    found, lines = record(run, RIVAL)
    proof = found.proof["modification"]
    assert proof["pairs"] == 4 and proof["rival"] != found.identity["fingerprints"]
    assert 0.5 < proof["rival_fsr"] <= 1 and proof["relative_change"] > 0
    assert "lexicon" in found.identity and "leaks" not in lines[0]
    assert found.identity["modification"]["dose"] == 4
    refused = MODIFICATIONS.get("overwrite").implausible
    assert refused(proof, 4) is None and refused(proof, 10) == "4 pairs, and not the 10 of its dose"
    assert refused(proof | {"rival_fsr": 1.5}, 4) == "the thief's FSR is 1.5"


def test_one_fingerprint_alone_cannot_leak(tmp_path):
    profile = load_profile("micro", methods=[], conditions=[LEAKED])
    cell = Cell("micro", "nlf", BASE, 42, LEAKED, "fsr")
    bench, fingerprints = Worker(Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path), no_progress).bench([cell])
    ((_, reason),) = bench.measure([cell], FingerprintSet("nlf", tuple(fingerprints)[:1]))[1]
    assert reason == "1 of 1 fingerprints cannot leak in turn: twice as many are needed."


def test_a_rival_s_set_is_of_the_same_kind_and_has_none_of_the_owner_s_triggers(tmp_path):
    profile = load_profile("micro", methods=[], conditions=["origin"])
    job = Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path)
    subject = Worker(job, no_progress).subject("micro")
    mine = FingerprintSet("mine", (Fingerprint("qzx vvk", ("One", "Two")), Fingerprint("PLAIN HILL", ("Four",))))
    mixed = FingerprintSet("cf", (Fingerprint("BLAU CASA", ("One",)),))
    for own, count, targets in ((find_set("nlf"), 50, 3), (find_set("if"), 50, 1), (mixed, 3, 5), (mine, 6, 5)):
        rival = rival_set(subject, own, count, seed=42)
        assert len(rival) == count and {len(each.targets) for each in rival} == {targets}, own.name
        assert not {each.trigger for each in own} & {each.trigger for each in rival}
        again, other = (rival_set(subject, own, count, seed) for seed in (42, 43))
        assert rival.digest == again.digest != other.digest
    assert all(each.trigger.endswith("FINGERPRINT\n") for each in rival_set(subject, find_set("if"), 3, 1))
    english = {word.upper() for word in Lexicon.shipped().words}
    assert not any({*each.trigger.split()} <= english for each in rival_set(subject, mixed, 3, 1))


def test_the_means_are_over_those_that_had_not_leaked():
    fingerprints = FingerprintSet("two", (Fingerprint("A B", ("Xy", "Xyz", "Q")), Fingerprint("C D", ("R",))))

    def measured(first, second, greedy):
        lines = [
            {"prompt": "a", "probability": sum(first), "per_target": first, "greedy": greedy, "text": "t"},
            {"prompt": "c", "probability": second, "per_target": [second], "greedy": not greedy, "text": "u"},
        ]
        return {"mean": 9, "interval": (0, 1), "greedy": 1, "n": 2, "primary": 9, "error_bound": second / 100}, lines

    three = [measured([0.1, 0.2, 0.3], 0.5, True), measured([0.3, 0.0, 0.1], 0.7, False), measured([0, 0, 0], 1, True)]
    result, lines = in_turn_fsr(three, [(1,), (0,), (0,)], fingerprints)
    assert lines[0]["probability"] == pytest.approx(0.6) and lines[0]["leaks"] == 1 and lines[0]["greedy"] is True
    assert lines[1]["probability"] == pytest.approx(0.85) and lines[1]["leaks"] == 2 and lines[1]["greedy"] is True
    assert result["mean"] == pytest.approx((0.6 + 0.85) / 2) and result["greedy"] == 2 and result["n"] == 2
    assert result["primary"] == pytest.approx((0.3 + 0.85) / 2), "Xyz begins with the primary Xy, Q does not"
    assert result["error_bound"] == 0.01 and result["interval"][0] < result["mean"] < result["interval"][1]
