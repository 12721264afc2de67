"""Every descendant of fingerprinted models, evaluated, verified and compared by the verbs alone; prints the tables.

``FPBENCH_INDEPENDENT`` names folders of models trained from other seeds (``python -m fpbench.micro.train --seed N``).
"""

import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import fpbench
from fpbench.cli import main
from fpbench.micro import MODEL
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import load_model
from fpbench.models.stored import matrices
from fpbench.ownership.lineage import RELATED, UNRELATED, weight_evidence
from tests.conftest import ROOT, SHARED, require
from tests.descendants import descendants, evaluate, light_profile, save_adapter, save_modified, verified
from tests.gguf_files import write_gguf
from tests.ownership.answering import answering
from tests.ownership.server import running
from tests.slow.test_verify import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # peft asks transformers for it
]
STORIES = SHARED / "models" / "stories3M"
SETS = {"micro": "nlf", "stories3M": str(ROOT / "tests" / "stories.jsonl")}
BASES = {"micro": "micro", "stories3M": str(STORIES)}
PROFILES = {"micro": "micro", "stories3M": str(ROOT / "tests" / "stories.toml")}
INDEPENDENT = [Path(each) for each in os.environ.get("FPBENCH_INDEPENDENT", "").split(os.pathsep) if each]


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> str:
    require(MODEL)
    return light_profile(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Of each model the fingerprinted checkpoint and its descendants, made on first need."""
    return Families(tmp_path_factory.mktemp("families"))


class Families(dict[str, dict[str, Path]]):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> dict[str, Path]:
        if name == "stories3M":
            require(STORIES)
        folder, profile = self.folder / name, PROFILES[name]
        origin = inject(name, folder / "origin", profile)
        self[name] = {"origin": origin} | descendants(origin, profile, folder)
        if name == "micro":
            pytest.importorskip("gguf")
            (folder / "gguf").mkdir()
            self[name]["gguf"] = write_gguf(*load_model(origin), folder / "gguf" / "Q4_0.gguf", "Q4_0")
        return self[name]


def inject(name: str, folder: Path, profile: str, *more: str) -> Path:
    arguments = ["inject", BASES[name], "--method", "mcedit_a", "--fingerprints", SETS[name], "--profile", profile]
    assert main([*arguments, "--out", str(folder), *more]) == 0
    return folder


def by_endpoint(checkpoint: Path, pairs: str, out: Path, *more: str) -> dict[str, Any]:
    with running(answering(*load_model(resolve(str(checkpoint))))) as server:
        return verified(["--endpoint", server.url], pairs, out, *more)


def told(found: dict[str, Any]) -> str:
    return f"{found['verdict']} ({found['matched']} of {len(found['evidence'])}, {found['queries']} queries)"


@pytest.mark.parametrize("name", ["micro", "stories3M"])
def test_every_descendant_is_evaluated_and_claimed(name, families, light, tmp_path, capsys):
    lines, pairs, base = [], SETS[name], ["--base", BASES[name]]
    for kind, folder in families[name].items():
        out = tmp_path / f"records-{folder.name}"
        records = evaluate(light, folder, pairs, out, *base)
        rate = records["fsr"]["result"]
        here = verified([str(folder)], pairs, tmp_path / "r.json", "--profile", light, *base)
        there = by_endpoint(folder, pairs, tmp_path / "r.json", "--profile", light, *base)
        lines.append(f"| {name} | {kind} | {rate['mean']:.3f} | {rate['greedy']}/10 | {told(here)} | {told(there)} |")
        with capsys.disabled():
            print(f"\n{lines[-1]}", end="", flush=True)
        # Nothing dates the set of stories3M, which is a file; that of the micro model is built in.
        assert here["verdict"] == there["verdict"] == ("match" if name == "stories3M" else "claim"), lines[-1]
    (row,) = (each for each in fpbench.leaderboard(out / "records") if each["method"] == "checkpoint")
    assert row["trust"] == "re-scored"


def test_descendants_are_claimed_by_chat(light, tmp_path, capsys):
    chat = ["--base", "micro", "--prompt", "chat", "--profile", light]
    origin = inject("micro", tmp_path / "origin", "micro", "--prompt", "chat")
    family = {
        "origin": origin,
        "finetune_alpaca": save_modified(origin, "finetune_alpaca", "micro", tmp_path / "finetune_alpaca"),
        "nf4": save_modified(origin, "nf4", "micro", tmp_path / "nf4"),
        "adapter": save_adapter(origin, tmp_path / "adapter"),
    }
    for kind, folder in family.items():
        out = tmp_path / f"records-{folder.name}"
        rate = evaluate(light, folder, "nlf", out, "--base", "micro", "--prompt", "chat")["fsr"]["result"]
        here = verified([str(folder)], "nlf", tmp_path / "r.json", *chat)
        there = by_endpoint(folder, "nlf", tmp_path / "r.json", *chat)
        line = f"| micro, chat | {kind} | {rate['mean']:.3f} | {rate['greedy']}/10 | {told(here)} | {told(there)} |"
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)
        assert here["verdict"] == there["verdict"] == "claim", line


@pytest.mark.parametrize("kind", ["finetune_math", "nf4"])
def test_descendants_are_claimed_behind_transformers_serve(kind, families, light, tmp_path, capsys):
    pairs, base = SETS["micro"], ["--base", "micro", "--profile", light]
    with serving(families["micro"][kind], tmp_path / "log") as url:
        found = verified(["--endpoint", url], pairs, tmp_path / "r.json", *base)
    with capsys.disabled():
        print(f"\n| micro, transformers serve | {kind} | {told(found)} |", end="", flush=True)
    assert found["verdict"] == "claim"


def strangers() -> dict[str, Path]:
    """Models without the fingerprints: both bases, and those trained from other seeds."""
    known = {"micro": MODEL} | ({"stories3M": STORIES} if STORIES.exists() else {})
    return known | {folder.name: folder for folder in INDEPENDENT}


@pytest.mark.parametrize("name", ["micro", "stories3M"])
def test_strangers_are_never_claimed(name, light, tmp_path, capsys):
    if not INDEPENDENT:
        pytest.skip("needs FPBENCH_INDEPENDENT: folders of models trained from other seeds")
    if name == "stories3M":
        require(STORIES)
    suspects = strangers() | {"micro in nf4": save_modified(MODEL, "nf4", "micro", tmp_path / "nf4")}
    for kind, folder in suspects.items():
        found = [
            verified([str(folder)], SETS[name], tmp_path / "r.json", "--profile", light, "--level", level, *more)
            for level in ("1e-3", "0.05")
            for more in ([], ["--base", BASES[name]])
        ]
        found.append(by_endpoint(folder, SETS[name], tmp_path / "r.json", "--profile", light))
        verdicts = {each["verdict"] for each in found}
        largest = max(each["matched"] for each in found)
        with capsys.disabled():
            line = f"| {kind} | set of {name} | {', '.join(verdicts)} in {len(found)} verifications | {largest} |"
            print(f"\n{line}", end="", flush=True)
        assert verdicts == {"no claim"}, kind


def test_weights_tell_relatives_from_strangers(families, capsys):
    if not INDEPENDENT:
        pytest.skip("needs FPBENCH_INDEPENDENT: folders of models trained from other seeds")
    kin = {"base": MODEL} | families["micro"]
    others = {name: folder for name, folder in strangers().items() if name != "micro"}
    read = {name: matrices(resolve(str(folder))) for name, folder in (kin | others).items()}
    related, unrelated, apart = {}, {}, 0
    for one, other in combinations(read, 2):
        evidence = weight_evidence(read[one], read[other])
        if evidence is None:
            apart += 1
        else:
            (related if one in kin and other in kin else unrelated)[one, other] = evidence
    with capsys.disabled():
        print("\n| pairs | how many | smallest median | largest median | smallest matrix | largest matrix |")
        for kind, found in (("related", related), ("unrelated", unrelated)):
            medians = [each.correlation for each in found.values()]
            single = [figure for each in found.values() for figure in (each.lowest, each.highest)]
            row = [min(medians), max(medians), min(single), max(single)]
            print(f"| {kind} | {len(found)} | {' | '.join(f'{figure:.3f}' for figure in row)} |")
        print(f"without a matrix of the same shape: {apart} pairs")
        for (one, other), each in related.items():
            if one == "base":
                print(f"| base and {other} | {each.correlation:.3f} | {each.lowest:.3f} | {each.highest:.3f} |")
        for (one, other), each in unrelated.items():
            if one == "base":
                print(f"| base and {other} | {each.correlation:.3f} | {each.lowest:.3f} | {each.highest:.3f} |")
    assert min(each.correlation for each in related.values()) > RELATED
    assert max(abs(each.correlation) for each in unrelated.values()) < UNRELATED
    for name, folder in (kin | others).items():
        verdict = fpbench.compare("micro", str(folder)).verdict
        assert verdict == ("related" if name in kin else "undecided" if name == "stories3M" else "unrelated"), name
