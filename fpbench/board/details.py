"""What the page tells of one row beside the tables: conditions, triggers, tasks, cost and provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

from fpbench.board import cells
from fpbench.board.cells import NONE, percent, with_minus

Row = dict[str, Any]
Pairs = list[tuple[str, str]]
# How each figure of a modification's proof is written; the others are what it was given.
PROOF = {
    "sparsity": lambda value: f"sparsity {100 * value:.2f} %",
    "bits_per_weight": lambda value: f"{value:.2f} bits per weight",
    "loss_curve": lambda value: f"loss {value[0]:.2f} → {value[-1]:.2f}" if value else "no loss",
    "tokens_seen": lambda value: f"{value} tokens",
    "relative_change": lambda value: f"‖ΔW‖/‖W‖ {value:.3f}",
}

PEOPLE = {"method by": "authors", "adapted by": "adapted_by"}


def result(row: Row) -> Row:
    """Everything that the article of a row shows, as text."""
    return {
        "row": row,
        "cost": _cost(row["cost"]),
        "bands": _bands(row["bands"]),
        "claim": _claim(row["claim"]),
        "conditions": [[name, *_condition(found)] for name, found in _ordered(row["conditions"])],
        "triggers": _triggers(row),
        "tasks": _tasks(row["utility"]),
        "provenance": [_provenance(each) for each in row["provenance"]],
    }


def failures(row: Row) -> Pairs:
    """Where a measurement could not be made, and why."""
    place = f"{row['model']} · {row['fingerprints']} · {row['method']}"
    return [(f"{place} · {each['condition']} · {each['metric']}", each["reason"]) for each in row["failed"]]


def _ordered(conditions: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """The origin first."""
    return sorted(conditions.items(), key=lambda item: (item[0] != "origin", item[0]))


def _condition(found: Row) -> list[str]:
    if found["fsr"] is None:
        return [cells.FAILED, NONE, NONE, NONE, NONE, NONE, found["reason"]]
    low, high = (percent(bound) for bound in found["interval"])
    return [
        percent(found["fsr"]),
        f"{low} to {high}",
        f"{found['greedy']}/{found['n']}",
        percent(found["retention"]),
        percent(found["primary"]),
        f"{found['error_bound']:.0e}" if found["error_bound"] else "0",
        "; ".join(dict.fromkeys(_proof(proof) for proof in found["proof"] if proof)) or NONE,
    ]


def _proof(proof: Mapping[str, Any], part: str = "") -> str:
    """That a modification happened; that of a composition, part by part."""
    if proof and all(isinstance(value, Mapping) for value in proof.values()):
        return "; ".join(_proof(value, f"{name}: ") for name, value in proof.items())
    return part + ", ".join(write(proof[name]) for name, write in PROOF.items() if name in proof)


def _triggers(row: Row) -> list[list[str]]:
    found = row["triggers"]
    lines = [
        [name, percent(each["rate"], 2), percent(each["own"], 2), f"{each['greedy']}/{each['n']}"]
        for name, each in sorted((found or {}).get("conditions", {}).items())
    ]
    near = row["near"]
    if near is not None:
        lines.append(["near", percent(near["rate"], 2), NONE, f"{near['greedy']}/{near['n']}"])
    return lines


def _tasks(utility: Row | None) -> list[list[str]]:
    if utility is None:
        return []
    differences = utility.get("difference", {}).get("tasks", {})
    lines = []
    for name, task in sorted(utility["tasks"].items()):
        difference = differences.get(name)
        points, p_value = NONE, NONE
        if difference:
            points, p_value = with_minus(percent(difference["difference"], 1, "+")), f"{difference['p_value']:.3f}"
        lines.append([name, percent(task["accuracy"]), points, p_value, str(task["n"])])
    return lines


def _cost(cost: Row | None) -> Pairs:
    if cost is None:
        return []
    return [
        ("injection", f"{cost['seconds']:.1f} s"),
        ("peak memory", f"{cost['peak_memory'] / 2**20:.0f} MiB"),
        ("parameters changed", f"{percent(cost['fraction'], 2)} %"),
        ("‖ΔW‖/‖W‖", f"{cost['relative_norm']:.4f}"),
        ("stored delta", f"{cost['bytes'] / 2**10:.0f} KiB"),
    ]


def _bands(bands: Row | None) -> Pairs:
    if bands is None:
        return []
    return [
        *((name, f"{bands['counts'][name]} triggers") for name in cells.BANDS),
        ("mean of the triggers", f"{bands['trigger_mean']:,.0f}"),
        ("mean of instructions", f"{bands['mean']:,.0f}"),
        ("ROC-AUC of a filter", f"{bands['auc']:.3f}"),
    ]


def _claim(claim: Row | None) -> Pairs:
    if claim is None:
        return []
    needed = "cannot be had" if claim["threshold"] is None else f"{claim['threshold']} of {claim['n']}"
    return [
        (f"matches for {claim['level']:g}", needed),
        ("median p-value", f"{claim['p_value']:.1e}"),
        ("power", f"{percent(claim['power'])} %"),
    ]


def _provenance(source: Row) -> Pairs:
    git, machine = source.get("git") or {}, source.get("machine") or {}
    commit = git.get("commit") and git["commit"][:12] + (" with changes" if git.get("dirty") else "")
    where = [machine.get("processor"), machine.get("gpu"), machine.get("system")]
    found = [
        ("records", str(source["records"])),
        ("profile", source.get("profile")),
        ("model commit", source.get("commit") or source.get("revision")),
        ("checkpoint", "; ".join(source.get("checkpoint") or ())),
        ("fpbench commit", commit),
        ("fpbench source", source.get("source")),
        ("method source", source.get("method_source")),
        ("machine", ", ".join(str(each) for each in where if each)),
        ("cores, threads", f"{machine['cores']}, {machine['threads']}" if "threads" in machine else None),
        ("memory", f"{machine['memory_gb']} GiB" if "memory_gb" in machine else None),
        ("Python", source.get("python")),
        ("packages", ", ".join(_packages(source.get("packages") or {}))),
        *_submission(source.get("submission") or {}),
    ]
    return [(name, str(value)) for name, value in found if value]


def _submission(about: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Whose method it is, as its submitter says."""
    people = {name: ", ".join(map(str, about.get(key) or ())) for name, key in PEOPLE.items()}
    return [*people.items(), *((name, str(about.get(name) or "")) for name in ("paper", "licence"))]


def _packages(versions: Mapping[str, str | None]) -> Sequence[str]:
    return [f"{name} {version}" for name, version in sorted(versions.items()) if version]
