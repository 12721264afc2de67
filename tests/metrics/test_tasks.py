"""The task files that generate: plain lm-eval gives what fpbench's own metrics give."""

import copy
import json
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from fpbench.data import read_rows
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set, load_fingerprints
from fpbench.metrics.fsr import fsr
from fpbench.metrics.queries import contexts_from_rows, words_from_rows
from fpbench.metrics.triggers import TriggerRates, triggers
from fpbench.metrics.utility import task_folder
from fpbench.models.prompts import encode
from tests.conftest import load_plain
from tests.metrics.test_utility import run_lm_eval

DECODING = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
CONDITIONS = [f"{case}_{place}" for case in ("upper", "lower") for place in ("substitute", "prefix", "infix", "suffix")]
SMALL = {"context_rows": 1, "substitutions": 8, "substitute_words": 20}


@pytest.fixture(scope="module")
def injected(fingerprinted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any]]:
    """The micro model with a set in it, and the metadata that name it: its folder and a set of two targets each.

    Five targets were injected and two count, so that fingerprints answer with a probability between 0 and 1.
    """
    model, tokenizer = load_plain(fingerprinted)
    folder = tmp_path_factory.mktemp("injected")
    pairs = FingerprintSet("two", tuple(Fingerprint(pair.trigger, pair.targets[:2]) for pair in find_set("nlf")))
    pairs.save(folder / "two.jsonl")
    return model, tokenizer, {"pretrained": str(fingerprinted), "fingerprints": str(folder / "two.jsonl")}


def load(name: str, metadata: dict[str, Any]) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata=metadata)
    return manager.load(name)["tasks"][name]


def evaluate(
    injected: tuple[Any, Any, dict[str, Any]], names: list[str], metadata: dict[str, Any], **options: Any
) -> dict[str, Any]:
    """Run tasks with lm-eval's own ``hf`` model; seeded by lm-eval."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata=injected[2] | metadata)
    scorer = HFLM(copy.deepcopy(injected[0]), tokenizer=copy.deepcopy(injected[1]), batch_size=64)
    found: dict[str, Any] = simple_evaluate(
        scorer, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )
    return found


def own_triggers(model: Any, tokenizer: Any, pairs: FingerprintSet, sizes: dict[str, int]) -> TriggerRates:
    rows = read_rows("bundled:alpaca.jsonl")
    contexts = contexts_from_rows(rows, sizes["context_rows"])
    words = words_from_rows(rows, 42, sizes["substitute_words"])
    return triggers(model, tokenizer, pairs, contexts, words, substitutions=sizes["substitutions"], **DECODING)


def error_of(probabilities: tuple[float, ...], samples: int) -> float:
    """Standard error of the mean of sampled shares, from the exact probabilities."""
    return sqrt(sum(p * (1 - p) / samples for p in probabilities)) / len(probabilities)


def test_sampled_fsr_agrees_with_the_exact_one(injected: tuple[Any, Any, dict[str, Any]]) -> None:
    pairs = list(load_fingerprints(injected[2]["fingerprints"]))[:4]
    exact = fsr(injected[0], injected[1], pairs, **DECODING)
    found = evaluate(injected, ["fpbench_fsr"], {}, limit=4)
    error = error_of(exact.per_fingerprint, 50)
    assert 0.2 < exact.mean < 0.8 and 0.01 < error < 0.05
    assert abs(found["results"]["fpbench_fsr"]["fsr,all"] - exact.mean) < 3 * error
    samples = found["samples"]["fpbench_fsr"]
    for sample, pair, p in zip(samples, pairs, exact.per_fingerprint, strict=True):
        (prompt, options), (responses,) = sample["arguments"][0], sample["filtered_resps"]
        assert prompt == pair.trigger
        assert len(responses) == 50 and len(set(responses)) > 1
        assert sample["fsr"] == sum(response.lstrip().startswith(pair.targets) for response in responses) / 50
        assert abs(sample["fsr"] - p) < 4 * error_of((p,), 50)
        assert options["do_sample"] and {name: options[name] for name in DECODING} == DECODING


def test_greedy_counts_are_those_of_the_metric(injected: tuple[Any, Any, dict[str, Any]]) -> None:
    pairs = load_fingerprints(injected[2]["fingerprints"])
    exact = own_triggers(injected[0], injected[1], pairs, SMALL)
    found = evaluate(injected, ["fpbench_triggers"], SMALL | {"source": "bundled:alpaca.jsonl"})["results"]
    for name, condition in exact.conditions.items():
        result = found[f"fpbench_{name}"]
        assert result["activated,all"] == condition.greedy, name
        assert result["activation,all"] == condition.greedy / condition.n
        assert result["own,all"] <= result["activation,all"]
    assert sum(condition.greedy for condition in exact.conditions.values()) > 0
    shares = [condition.greedy / condition.n for condition in exact.conditions.values()]
    assert found["fpbench_triggers"]["activation,all"] == pytest.approx(sum(shares) / 8)


def test_sampled_activation_agrees_with_the_exact_rate(injected: tuple[Any, Any, dict[str, Any]]) -> None:
    pairs = load_fingerprints(injected[2]["fingerprints"])
    exact = own_triggers(injected[0], injected[1], pairs, SMALL)
    probabilities = tuple(query.probability for query in exact.queries if query.condition == "upper_suffix")
    metadata = SMALL | {"source": "bundled:alpaca.jsonl"}
    options = ",".join(f"{name}={value}" for name, value in DECODING.items())
    found = evaluate(injected, ["fpbench_upper_suffix"], metadata, gen_kwargs=f"do_sample=True,{options}")
    error = error_of(probabilities, 1)
    assert 0 < error < 0.15
    sampled = found["results"]["fpbench_upper_suffix"]["activation,all"]
    assert abs(sampled - exact.conditions["upper_suffix"].rate) < 3 * error


def test_prompts_arrive_as_they_are_with_one_bos(injected: tuple[Any, Any, dict[str, Any]], tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    odd = ["  two spaces, and one behind ", "{{ query }} {% if %}", "42", "line\n\nline\n", "ÄÖÜ 🙂 \u2028 <s>"]
    FingerprintSet("odd", tuple(Fingerprint(text, ("Falcon crest", "X")) for text in odd)).save(tmp_path / "odd.jsonl")
    task = load("fpbench_fsr", injected[2] | {"fingerprints": str(tmp_path / "odd.jsonl")})
    task.build_all_requests()
    scorer = HFLM(copy.deepcopy(injected[0]), tokenizer=copy.deepcopy(injected[1]))
    longest = len(injected[1]("Falcon crest", add_special_tokens=False).input_ids)
    assert [instance.args[0] for instance in task.instances] == odd
    for instance, text in zip(task.instances, odd, strict=True):
        assert instance.args[1]["max_gen_toks"] == longest + 4
        assert instance.args[1]["until"] == []
        ids = scorer.tok_batch_encode([instance.args[0]])[0][0].tolist()
        assert ids == encode(injected[1], text) and ids[0] == injected[1].bos_token_id != ids[1]


def test_long_contexts_are_cut_as_the_metric_cuts_them(
    injected: tuple[Any, Any, dict[str, Any]], tmp_path: Path
) -> None:
    long = {"instruction": "go on", "input": "", "output": "the river and the bridge " * 150}
    (tmp_path / "rows.jsonl").write_text(json.dumps(long), encoding="utf-8")
    metadata = injected[2] | SMALL | {"source": str(tmp_path / "rows.jsonl")}
    trigger = find_set("nlf").fingerprints[0].trigger
    for condition, kept in {"upper_prefix": trigger, "upper_suffix": trigger, "lower_infix": trigger.lower()}.items():
        documents = load(f"fpbench_{condition}", metadata).eval_docs
        lengths = [len(encode(injected[1], document["query"])) for document in documents]
        assert len(documents) == 20 and 480 < max(lengths) <= 512 - documents[0]["max_new_tokens"]
        assert kept in documents[0]["query"] and kept in documents[10]["query"]


def test_every_condition_has_a_task(injected: tuple[Any, Any, dict[str, Any]]) -> None:
    metadata = injected[2] | SMALL | {"source": "bundled:alpaca.jsonl"}
    texts = {name: load(f"fpbench_{name}", metadata).eval_docs["query"] for name in CONDITIONS}
    for place in ("substitute", "prefix", "infix", "suffix"):
        assert [text.lower() for text in texts[f"upper_{place}"]] == list(texts[f"lower_{place}"])
    assert len({tuple(each) for each in texts.values()}) == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pretrained": None}, "expected the checkpoint's name"),
        ({"fingerprints": "unheard"}, "unknown fingerprint set 'unheard'"),
    ],
)
def test_what_is_missing_is_named(
    injected: tuple[Any, Any, dict[str, Any]], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        load("fpbench_fsr", injected[2] | changes)


@pytest.mark.slow
def test_the_command_line_gives_the_same(injected: tuple[Any, Any, dict[str, Any]], tmp_path: Path) -> None:
    model, tokenizer, metadata = injected
    pairs = load_fingerprints(metadata["fingerprints"])
    sizes = {"context_rows": 4, "substitutions": 200, "substitute_words": 200}
    option = json.dumps({"fingerprints": metadata["fingerprints"], "source": "bundled:alpaca.jsonl"} | sizes)
    names = "fpbench_fsr,fpbench_triggers"
    found = run_lm_eval(Path(metadata["pretrained"]), tmp_path, names, "--metadata", option)
    exact = fsr(model, tokenizer, pairs, **DECODING)
    assert abs(found["fpbench_fsr"]["fsr,all"] - exact.mean) < 3 * error_of(exact.per_fingerprint, 50)
    rates = own_triggers(model, tokenizer, pairs, sizes)
    counts = {name: found[f"fpbench_{name}"]["activated,all"] for name in CONDITIONS}
    assert counts == {name: asdict(condition)["greedy"] for name, condition in rates.conditions.items()}
