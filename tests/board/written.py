"""Records that are written down here: figures can be checked by hand."""

import math

from fpbench.metrics.statistics import clopper_pearson
from fpbench.records.cell import PROTOCOL, Cell
from fpbench.records.record import Record, cell_id
from fpbench.records.store import Store

MODIFIED = ("finetune_alpaca", "finetune_math", "int8", "nf4", "ria30", "ria40")
SPARSITY = {"ria30": 0.3, "ria40": 0.4}


def write(store, method, condition, metric, result=None, queries=(), reason=None, seed=42, cell=None, **changes):
    """One record; ``cell`` and further names replace what it would hold."""
    at = Cell(
        **{"model": "tiny", "fingerprints": "nlf"} | (cell or {}),
        method=method,
        seed=seed,
        condition=condition,
        metric=metric,
    )
    protocol = changes.get("protocol", PROTOCOL)
    identity = {"protocol": protocol, "method": method, "seed": seed, "condition": condition, "metric": metric}
    record = {"protocol": protocol, "id": cell_id(identity), "identity": identity, "cell": at}
    outcome = {"status": "failed", "reason": reason} if reason else {"status": "done", "result": result}
    store.write(Record(**(record | outcome | changes)), list(queries))


def fsr(store, method, condition, p, result=None, **more):
    """An FSR record; ``result`` replaces figures that follow from ``p``."""
    queries = [{"probability": each, "greedy": each > 0.5, "text": "", "per_target": [each / 2] * 2} for each in p]
    greedy = sum(value > 0.5 for value in p)
    figures = {"mean": sum(p) / len(p), "greedy": greedy, "n": len(p), "primary": 0.0, "error_bound": 1e-8}
    proof = {"weights_digest": "d"} | (
        {"modification": {"sparsity": SPARSITY[condition]}} if condition in SPARSITY else {}
    )
    write(store, method, condition, "fsr", figures | (result or {}), queries, **({"proof": proof} | more))


def near(store, method, p, greedy=0, result=None, metric="near", **more):
    """A record of near or recombined triggers; ``result`` replaces figures that follow from ``p`` and ``greedy``."""
    interval = list(clopper_pearson(greedy, len(p)))
    figures = {"rate": sum(p) / len(p), "greedy": greedy, "n": len(p), "interval": interval, "error_bound": 0.0}
    queries = [{"prompt": "x", "probability": each} for each in p]
    write(store, method, "origin", metric, figures | (result or {}), queries, **more)


def triggers(store, method, p, result=None, **more):
    """A record of accidental triggers with one text a kind and trigger; ``result`` replaces figures."""
    names = [f"{case}_{place}" for case in ("upper", "lower") for place in ("substitute", "prefix", "infix", "suffix")]
    queries = [
        {"condition": name, "trigger_index": i, "source": 0, "digest": "x", "probability": each, "own": each}
        | {"greedy": each > 0.5}
        for name in names
        for i, each in enumerate(p)
    ]
    greedy, mean = sum(each > 0.5 for each in p), sum(p) / len(p)
    figures = {
        "conditions": {name: {"rate": mean, "own": mean, "greedy": greedy, "n": len(p)} for name in names},
        "average": mean,
        "activated": greedy,
        "n": len(p),
        "interval": list(clopper_pearson(greedy, len(p))),
        "error_bound": 0.0,
        "cut": 0,
    }
    write(store, method, "origin", "triggers", figures | (result or {}), queries, **more)


def cost(store, method, result=None, **more):
    """A record of what an injection cost."""
    figures = dict.fromkeys(("peak_memory", "fraction", "relative_norm", "bytes"), 0.5)
    figures |= {"seconds": {"total": 1.0}, "weights_digest": "d"}
    write(store, method, "origin", "cost", figures | (result or {}), **more)


def price(store, method, condition, long=0.0, short=0.0, refused=0, text=None, result=None, **more):
    """A record of what four instructions, four answers and two windows of text give at prices ``long`` and ``short``.

    The first ``refused`` instructions have no response; ``text`` is the price of language, measured where it is given.
    """
    loss = 2.0 - math.log(1 - long)  # nats a token; 2 at origin
    queries = [{"channel": "responses", "index": i, "loss": 10 * loss, "tokens": 10} for i in range(refused, 4)]
    queries += [{"channel": "refused", "index": i, "refused": i < refused} for i in range(4)]
    queries += [{"channel": "answers", "index": i, "probability": 0.5 * (1 - short)} for i in range(4)]
    figures = {
        "responses": {"perplexity": math.exp(loss), "tokens": 10 * (4 - refused), "n": 4 - refused},
        "answers": {"accuracy": 0.5 * (1 - short), "n": 4},
        "refused": refused / 4,
        "text": None,
    }
    if text is not None:
        loss = 3.0 - math.log(1 - text)
        queries += [{"channel": "text", "index": i, "loss": 511 * loss, "tokens": 511} for i in range(2)]
        figures["text"] = {"perplexity": math.exp(loss), "tokens": 1022, "n": 2}
    write(store, method, condition, "price", figures | (result or {}), queries, **more)


def utility(store, method, right, perplexity, figures=None):
    """Two tasks of the same answers, and four windows; ``figures`` replace what follows from them."""
    queries = [{"task": task, "index": i, "correct": each} for task in ("boolq", "rte") for i, each in enumerate(right)]
    # Four windows of 511 predicted tokens, whose losses lie around the mean.
    losses = [511 * (math.log(perplexity) + away) for away in (-0.1, 0.1, -0.2, 0.2)]
    queries += [{"task": "windows", "index": i, "loss": loss} for i, loss in enumerate(losses)]
    accuracy = sum(right) / len(right)
    result = {
        "accuracy": accuracy,
        "tasks": {name: {"accuracy": accuracy, "n": len(right)} for name in ("boolq", "rte")},
        "word_perplexity": None,
        "token_perplexity": {"perplexity": perplexity, "length": 512},
    }
    write(store, method, "origin", "utility", result | (figures or {}), queries)


def harmless(store, method):
    """Everything beside FSR that a rank needs, within the bars against the base of :func:`grid`."""
    utility(store, method, [True] * 6 + [False] * 4, 12.0)
    triggers(store, method, [0.1] * 10)
    near(store, method, [0.0] * 10)
    near(store, method, [0.5] * 10, metric="recombined")


def grid(folder) -> Store:
    """A base that answers nothing, a method that always does, one that half does; one failed cell."""
    store = Store(folder)
    for condition in ("origin", *MODIFIED):
        fsr(store, "base", condition, [0.0] * 10)
        fsr(store, "strong", condition, [1.0] * 10)
        if condition != "nf4":
            fsr(store, "weak", condition, [0.4] * 10 if condition == "origin" else [0.1] * 10)
    write(store, "weak", "nf4", "fsr", reason="width 172 | not divisible by 32")
    utility(store, "base", [True] * 8 + [False] * 2, 10.0)
    harmless(store, "strong")
    harmless(store, "weak")
    return store


# What each attack costs, and what it leaves of "strong"; three matches of ten make a claim, which p = 0.3 gives with
# probability 0.617 and p = 0.2 with 0.322.
SAMPLERS = {"suppress@1": (0.002, 0.9), "suppress@3": (0.03, 0.3), "suppress_always@1": (0.043, 0.2)}
ATTACK_SEEDS = (42, 43)


def attacked(store, method, left, seeds=ATTACK_SEEDS, merged=0.0):
    """FSR of a method under the attacks; the merge changes its weights, so that its price is its own."""
    for seed in seeds:
        fsr(store, method, "origin", [1.0] * 10, seed=seed)
        for condition, p in left.items():
            fsr(store, method, condition, [p] * 10, seed=seed)
        fsr(store, method, "merge@0.3", [merged] * 10, seed=seed)
        price(store, method, "origin", text=0.0, seed=seed)
        price(store, method, "merge@0.3", long=0.05, text=0.12, short=0.4, seed=seed)


def priced(store, seeds=ATTACK_SEEDS):
    """The base under the attacks, with what they cost it; it is not merged with itself."""
    for seed in seeds:
        fsr(store, "base", "origin", [0.0] * 10, seed=seed)
        price(store, "base", "origin", text=0.0, seed=seed)
        for condition, (long, _) in SAMPLERS.items():
            fsr(store, "base", condition, [0.0] * 10, seed=seed)
            price(store, "base", condition, long=long, short=2 * long, text=0.0, seed=seed)


def attacked_grid(folder) -> Store:
    """The grid under attack: ``strong`` keeps what ``SAMPLERS`` leave, ``weak`` falls to the first dose."""
    store = grid(folder)
    priced(store)
    attacked(store, "strong", {name: p for name, (_, p) in SAMPLERS.items()})
    attacked(store, "weak", dict.fromkeys(SAMPLERS, 0.0))
    return store
