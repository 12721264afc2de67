"""Measure fpbench on a CUDA device within N minutes; README.md beside this file says how.

Each step runs in a process of its own, so that what breaks one leaves the others alone, and has a share of the time.
Its report, one JSON file, is written anew after every figure. A step begins nothing that would not fit into the time it
has left, and says what it left out; a step that overruns all the same is ended from outside.

========  ===========================================================================================================
prepare   the checkpoint from its parts, and a profile with the sources of a mirror
a         agreement of CPU and device: exact FSR in float32 and bfloat16, codes and FSR of int8 and nf4
b         six methods × nlf × drift at the protocol's sizes, cell by cell, the cheap ones first, with tokens a second
c         MCEdit_A into random-weight models of 8, 3 and 7 billion parameters: seconds and peak memory
d         the accidental-trigger suite: queries a second
========  ===========================================================================================================

Without a CUDA device everything is done at a hundredth of the sizes, which tests this script and nothing else.
"""

import argparse
import copy
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.device.prepare import prepare
from tests.device.punctual import Punctual
from tests.device.step import NAMES, SETTINGS, Step, nlf, write

ROOT = Path(__file__).resolve().parents[2]
GRACE = 10  # seconds that a step has beyond its time, to finish its report, before it is ended


def agreement(step: Step) -> None:
    """Compare exact FSR of one injected model on the CPU and on the device, and what quantisation makes of it there."""
    import fpbench

    rows = step.report["comparisons"] = []
    for name in ["micro", "smollm2"] if step.options.weights else ["micro"]:
        if not step.fits(f"agreement of {name}", step.guess(name)):
            continue
        checkpoint, profile = ("micro", "micro") if name == "micro" else (step.checkpoint(), str(step.profile))
        model, tokenizer = step.load(checkpoint, "float32")
        fpbench.inject(model, tokenizer, nlf(), "mcedit_a", profile=profile)
        for what, tolerance in (("float32", 1e-4), ("bfloat16", 2e-2), ("int8", 2e-2), ("nf4", 2e-2)):
            try:
                rows.append({"model": name, "what": what} | compare(step, model, tokenizer, what, tolerance, profile))
            except Exception as error:  # the other comparisons are worth having
                rows.append({"model": name, "what": what, "error": step.failed(error)})
            step.save()


def compare(step: Step, model: Any, tokenizer: Any, what: str, tolerance: float, profile: str) -> dict[str, Any]:
    """FSR of a float32 model as ``what`` on both sides: a dtype, or a quantisation of the model in bfloat16."""
    import fpbench

    sides = {"cpu": placed(model, "cpu", what), "device": placed(model, step.device, what)}
    figures: dict[str, Any] = {}
    if what in ("int8", "nf4"):
        sides = {side: fpbench.modify(each, tokenizer, what, profile=profile) for side, each in sides.items()}
        # Read before the first pass, in which bitsandbytes lays out a CPU's 4-bit codes anew.
        pairs = [(one.cpu(), other.cpu()) for one, other in zip(*map(codes, sides.values()), strict=True)]
        equal = sum(int((one == other).sum()) for one, other in pairs)
        figures["codes_equal"] = equal / sum(one.numel() for one, _ in pairs)
    cpu, device = (fpbench.fsr(each, tokenizer, nlf(), **SETTINGS["decoding"]) for each in sides.values())
    return figures | {
        "fsr_cpu": cpu.mean,
        "fsr_device": device.mean,
        "difference": abs(cpu.mean - device.mean),
        "largest_of_a_fingerprint": distance(cpu.per_fingerprint, device.per_fingerprint),
        "largest_of_a_target": max(
            distance(list(one.values()), list(other.values()))
            for one, other in zip(cpu.per_target, device.per_target, strict=True)
        ),
        "tolerance": tolerance,
        "agrees": abs(cpu.mean - device.mean) <= tolerance,
    }


def placed(model: Any, device: str, what: str) -> Any:
    """A copy on a device whose weights, and no buffers, are in the dtype of ``what``."""
    import torch

    moved = copy.deepcopy(model).to(device)
    for parameter in moved.parameters():
        parameter.data = parameter.data.to(torch.float32 if what == "float32" else torch.bfloat16)
    return moved


def codes(model: Any) -> Iterator[Any]:
    """The integer weights of a quantised model."""
    return (parameter.data for parameter in model.parameters() if not parameter.data.is_floating_point())


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two rows of figures."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def grid(step: Step) -> None:
    """Run the profile's grid as `fpbench run` does, with an engine that begins nothing it could not finish."""
    from fpbench.models.loading import Loading
    from fpbench.runs.api import measure
    from fpbench.runs.plan import Job, plan
    from fpbench.runs.profile import load_profile

    step.checkpoint()
    step.report["cells"] = []
    loading = Loading(step.device, "bfloat16", token_budget=SETTINGS["budgets"][1] if step.card else None)
    profile = load_profile(str(step.profile))
    measure(Job.of(profile, loading, step.options.out / "grid"), plan(profile), engine=Punctual(step))


def shapes(step: Step) -> None:
    """Inject ten pairs with MCEdit_A into random-weight models of the paper's shapes."""
    import torch

    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve(step.checkpoint()))
    models: dict[str, Any] = {}
    step.report |= {"paper": SETTINGS["paper"], "config": SETTINGS["random"], "models": models}
    for name, shape in SETTINGS["shapes"].items():
        if step.fits(f"the {name} shape", step.guess(name)):
            try:
                models[name] = {"like": shape["like"]} | inject_random(step, shape, tokenizer)
            except Exception as error:  # such as a card without the memory
                models[name] = {"like": shape["like"], "error": step.failed(error)}
            step.save()
            gc.collect()
            if step.card:
                torch.cuda.empty_cache()


def inject_random(step: Step, shape: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What the injection into one model takes, and what the model answers before and after it."""
    import torch

    import fpbench

    decoding, began = SETTINGS["decoding"], time.time()
    model = random_model(step, shape, len(tokenizer))
    before = fpbench.fsr(model, tokenizer, nlf(), **decoding)
    made = time.time()
    report = fpbench.inject(model, tokenizer, nlf(), "mcedit_a", SETTINGS["random"], profile=str(step.profile))
    done = time.time()
    after = fpbench.fsr(model, tokenizer, nlf(), **decoding)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_gib": sum(parameter.nbytes for parameter in model.parameters()) / 2**30,
        "dtype": str(model.dtype).removeprefix("torch."),
        "injection_minutes": report.seconds["total"] / 60,
        "injection_seconds": dict(report.seconds),
        "peak_gib": report.peak_memory / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if step.card else None,
        "making_seconds": made - began,
        "call_seconds": done - made,  # with the copies of all weights that a change is found, or undone, by
        "changed": dict(report.changed),
        "fsr_before": before.mean,
        "fsr_after": after.mean,
    }


def random_model(step: Step, shape: dict[str, Any], vocabulary: int) -> Any:
    """A model of a shape in bfloat16, made where it is to be; a small one of that make where sizes are cut.

    Args:
        step: says where.
        shape: of the settings.
        vocabulary: words of the tokenizer; the embedding has at least as many.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {name: value for name, value in shape.items() if name not in ("like", "model_type")}
    config["vocab_size"] = max(config["vocab_size"] if step.cut == 1 else 0, vocabulary)
    if step.cut > 1:
        config |= {name: config[name] // 16 for name in ("hidden_size", "intermediate_size")} | SETTINGS["small"]
    torch.manual_seed(42)
    with torch.device(step.device):
        architecture = AutoConfig.for_model(shape["model_type"], **config)
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def triggers(step: Step) -> None:
    """Time the accidental-trigger suite on a model with MCEdit_A in it, at the best of a few batch sizes."""
    import fpbench
    from fpbench.data import read_rows
    from fpbench.metrics.queries import contexts_from_rows, words_from_rows
    from fpbench.runs.profile import load_profile

    profile = load_profile(str(step.profile))
    rows, sizes = read_rows(profile.data["alpaca"]), profile.sizes
    contexts = contexts_from_rows(rows, sizes.context_rows)
    words = words_from_rows(rows, profile.draw, sizes.substitute_words)
    model, tokenizer = step.load(step.checkpoint(), "bfloat16")
    fpbench.inject(model, tokenizer, nlf(), "mcedit_a", profile=str(step.profile))
    probes: list[dict[str, Any]] = []
    step.report |= {"model": profile.models[0].label, "dtype": "bfloat16", "probes": probes}

    def ask(share: int, budget: int) -> dict[str, Any]:
        return suite(step, model, tokenizer, contexts[::share], words, max(2, sizes.substitutions // share), budget)

    ask(50, SETTINGS["budgets"][0])  # kernels are loaded and chosen in the first passes
    for budget in SETTINGS["budgets"]:
        if step.fits(f"a twentieth of the suite in batches of {budget} tokens", step.guess("triggers") / 20):
            probes.append(ask(20, budget))
            step.save()
    best = max(probes, key=lambda probe: float(probe["queries_a_second"]))
    queries = 2 * (sizes.substitutions + 3 * len(contexts) * len(nlf()))
    if step.fits(f"the suite of {queries} queries", 1.2 * queries / best["queries_a_second"]):
        step.report["suite"] = ask(1, best["token_budget"])


def suite(
    step: Step,
    model: Any,
    tokenizer: Any,
    contexts: Sequence[str],
    words: Sequence[str],
    substitutions: int,
    budget: int,
) -> dict[str, Any]:
    """Rates of the eight conditions, and the time from texts to figures."""
    import torch

    import fpbench
    from fpbench.scoring.engine import limited_to

    if step.card:
        torch.cuda.reset_peak_memory_stats()
    began = time.time()
    with limited_to(budget):
        decoding = SETTINGS["decoding"]
        found = fpbench.triggers(model, tokenizer, nlf(), contexts, words, substitutions=substitutions, **decoding)
    seconds = time.time() - began
    return {
        "queries": len(found.queries),
        "token_budget": budget,
        "seconds": seconds,
        "queries_a_second": len(found.queries) / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if step.card else None,
        "average": found.average,
        "activated": f"{found.activated}/{found.n}",
        "conditions": {name: rate.rate for name, rate in found.conditions.items()},
    }


STEPS = {"prepare": prepare, "a": agreement, "b": grid, "c": shapes, "d": triggers}


def work(name: str, options: argparse.Namespace) -> int:
    """Do one step in this process."""
    step = Step(name, options, options.until)
    try:
        from fpbench.records.provenance import code_and_machine

        step.report["where"] = code_and_machine()
        STEPS[name](step)
        step.report["status"] = "done"
    except Exception as error:
        step.report |= {"status": "failed", "error": step.failed(error)}
    step.save()
    return int(step.report["status"] != "done")


def supervise(name: str, options: argparse.Namespace, until: float, arguments: Sequence[str]) -> None:
    """Run one step in a process of its own, end it if it overruns, and see that its report says what became of it."""
    path = options.out / f"{NAMES[name]}.json"
    for old in (path, path.with_suffix(".traceback.txt")):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.device.device", "--child", name, "--until", repr(until), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.time()
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            error = f"the process ended with code {child.wait(max(1.0, until + GRACE - began))}"
        except subprocess.TimeoutExpired:
            error = f"ended from outside after {time.time() - began:.0f} s: what had begun took longer than expected"
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    report = {"step": name, "status": "running", "left_out": []}
    report |= json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if report["status"] == "running":
        report |= {"status": "stopped", "error": error}
        write(path, json.dumps(report, indent=1) + "\n")
    remark = report.get("error") or f"{len(report['left_out'])} left out"
    print(f"{NAMES[name]}: {report['status']} after {time.time() - began:.0f} s; {remark}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="device.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="of everything together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--weights", type=Path, nargs="+", help="parts of SmolLM2-135M-Instruct.Q4_1.gguf or its .xz")
    parser.add_argument("--mirror", type=Path, help="folder with mirror.toml; without one the bundled toy data serve")
    parser.add_argument("--work", type=Path, help="folder of checkpoint and profile, used again if whole: OUT/work")
    parser.add_argument("--steps", nargs="+", choices="abcd", default=list("abcd"), help="which, and in which order")
    parser.add_argument("--cut", type=int, help="divide sizes by this; by default 1 on a card, else 100")
    parser.add_argument("--device", help="cuda, cuda:N or cpu; by default a card if there is one")
    parser.add_argument("--learning-rate", default="3e-4", help="of fine-tuning; 'search' takes ten trainings a set")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Do the steps one after another within the time; the exit code is 0 whatever became of them."""
    options = parse(arguments)
    if options.child:
        return work(options.child, options)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60 * options.minutes - GRACE
    steps = ["prepare", *options.steps]
    for number, name in enumerate(steps):
        share = SETTINGS["shares"][name] / sum(SETTINGS["shares"][each] for each in steps[number:])
        supervise(name, options, time.time() + share * (end - time.time()), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
