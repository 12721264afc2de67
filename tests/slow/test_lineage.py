"""Known descents: where a checkpoint's parent lies among its parent's relatives. Prints the tables of lineage.md."""

import os
from pathlib import Path

import pytest

import fpbench
from fpbench.fingerprints.library import find_set
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import load_model, save_checkpoint
from fpbench.models.stored import matrices
from fpbench.ownership.parents import DESCENTS, LARGEST_EXCESSES, evidence, largest_excess
from tests.descendants import save_modified

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")]
METHODS = ("lora", "alphaedit", "fpedit", "mcedit_a", "rledit", "mcedit_r")
WAYS = ("int8", "nf4", "ria30", "quantize@4", "noise@0.03", "noise@0.3", "finetune_alpaca", "finetune_alpaca+nf4")


def candidates(folder: Path) -> dict[str, Path]:
    """The base, its six fingerprinted versions, a fine-tuned and a pruned one."""
    made = {"base": resolve("micro")}
    for method in METHODS:
        made[method] = folder / method
        if not made[method].exists():
            model, tokenizer = load_model(made["base"])
            fpbench.inject(model, tokenizer, find_set("nlf"), method=method)
            save_checkpoint(model, tokenizer, made[method])
    return made | {way: child(made["base"], way, folder / "base") for way in ("finetune_alpaca", "ria30")}


def child(parent: Path, way: str, folder: Path) -> Path:
    """Return what a condition makes of a checkpoint; of several parts one after another."""
    first, _, rest = way.partition("+")
    made = folder.with_name(f"{folder.name}-{first}")
    if not made.exists():
        save_modified(parent, first, "micro", made)
    return child(made, rest, made) if rest else made


def test_the_parent_is_in_the_set(tmp_path_factory):
    """Of every candidate the children by every way, their parent's excess, and how large the sets are."""
    folder = Path(os.environ.get("FPBENCH_DESCENTS") or tmp_path_factory.mktemp("descents"))
    own = candidates(folder)
    opened = {name: matrices(each) for name, each in own.items()}
    found: dict[str, list[tuple[float, int]]] = {}  # of each way: the parent's excess, the set's size
    for parent, of in own.items():
        for way in WAYS:
            if way == parent or (parent == "base" and way in own):
                continue  # done already, or that very checkpoint is a candidate
            made = child(of, way, folder / parent)
            _, excesses, _ = evidence(matrices(made), list(opened.values()))
            excess = dict(zip(opened, excesses, strict=True))
            true = "finetune_alpaca" if parent == "base" and way.startswith("finetune_alpaca+") else parent
            print(f"{parent:16} {way:20}", *(f"{name} {each:.3f}" for name, each in excess.items()), flush=True)
            assert all(each is not None for each in excesses)
            size = sum(each <= largest_excess(0.95) for each in excesses if each is not None)
            found.setdefault(way, []).append((excess[true] or 0.0, size))
    every = sorted(excess for those in found.values() for excess, _ in those)
    print("| made by | descents | parent nearest | parent's largest excess | mean size of the set |")
    for way, those in found.items():
        nearest = sum(excess == 0 for excess, _ in those)
        sizes = sum(size for _, size in those) / len(those)
        print(f"| `{way}` | {len(those)} | {nearest} | {max(excess for excess, _ in those):.3f} | {sizes:.2f} |")
    print(f"{len(every)} descents; excesses above 0: {[round(each, 4) for each in every if each > 0]}")
    assert len(every) == DESCENTS and [each for each in every if each > 0] == pytest.approx(LARGEST_EXCESSES, abs=0.02)
