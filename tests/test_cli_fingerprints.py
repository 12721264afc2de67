"""``fpbench fingerprints``: sets with their recipes, screening, commitments; refused input writes nothing."""

import json
import stat
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.fingerprints import find_set, load_fingerprints
from fpbench.fingerprints.instructional import instructional_set
from fpbench.micro import MODEL
from fpbench.models.checkpoints import checkpoint_digest
from tests.conftest import require
from tests.gguf_files import write_gguf
from tests.test_cli import fails


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cf(*arguments: str) -> list[str]:
    require(MODEL)
    return ["fingerprints", "cf", "--model", "micro", *arguments]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_if_and_nlf_are_written_with_their_recipes(tmp_path):
    assert main(["fingerprints", "if", "--out", "if.jsonl"]) == 0
    assert main(["fingerprints", "if", "--count", "3", "--seed", "7", "--out", "deep/other.jsonl"]) == 0
    assert main(["fingerprints", "nlf", "--count", "4", "--out", "nlf.jsonl"]) == 0
    require(MODEL)
    drawn = [
        "fingerprints",
        "nlf",
        "--model",
        "micro",
        "--count",
        "4",
        "--words",
        "4",
        "--seed",
        "7",
        "--out",
        "d.jsonl",
    ]
    assert main(drawn) == 0
    assert all(len(each.trigger.split()) == 4 and each.trigger.isupper() for each in load_fingerprints("d.jsonl"))
    recipe = json.loads(Path("d.recipe.json").read_text())
    assert (recipe["words"], recipe["seed"], recipe["model"]) == (4, 7, checkpoint_digest(MODEL))
    assert load_fingerprints("if.jsonl").digest == find_set("if").digest
    assert load_fingerprints("deep/other.jsonl").digest == instructional_set(3, 7).digest
    assert load_fingerprints("nlf.jsonl").fingerprints == find_set("nlf").fingerprints[:4]
    recipe = json.loads(Path("deep/other.recipe.json").read_text())
    assert (recipe["kind"], recipe["count"], recipe["seed"]) == ("if", 3, 7)
    assert names(tmp_path) == [
        "d.jsonl",
        "d.recipe.json",
        "deep",
        "if.jsonl",
        "if.recipe.json",
        "nlf.jsonl",
        "nlf.recipe.json",
    ]


def test_nlf_is_drawn_for_gguf_files_and_adapters_and_refuses_in_one_line(capsys, tmp_path, micro):
    pytest.importorskip("gguf")
    gguf = str(write_gguf(*micro, tmp_path / "micro.gguf", "F32"))
    adapter, bare = tmp_path / "adapter", tmp_path / "bare"
    for folder in (adapter, bare):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(MODEL)}))
    for name, source in (("adapter_model.safetensors", adapter), ("model.safetensors", bare)):
        (source / name).touch()
    (bare / "config.json").write_text("{}")
    draw = ["fingerprints", "nlf", "--count", "2", "--words", "4", "--model"]
    for number, model in enumerate(("micro", gguf, str(adapter))):
        assert main([*draw, model, "--out", f"{number}.jsonl"]) == 0
    assert len({load_fingerprints(f"{number}.jsonl").digest for number in range(3)}) == 1
    capsys.readouterr()
    assert "brings no tokenizer" in fails(capsys, *draw, str(bare), "--out", "none.jsonl")
    assert not Path("none.jsonl").exists()


def test_cf_is_built_screened_sealed_and_revealed(capsys, tmp_path):
    assert main(cf("--out", "cf.jsonl", "--count", "3", "--languages", "de", "fr", "zh", "--candidates", "4")) == 0
    built, recipe = load_fingerprints("cf.jsonl"), json.loads(Path("cf.recipe.json").read_text())
    assert len(built) == 3 and {len(each.targets) for each in built} == {4}
    assert recipe["fingerprints"] == built.digest and recipe["model"] == checkpoint_digest(MODEL)
    assert recipe["languages"] == ["de", "fr", "zh"] and recipe["dtype"] == "float32"
    # The recipe's queries give the same set again.
    Path("queries.txt").write_text("\n".join(row["query"] for row in recipe["queries"]) + "\n\n")
    again = cf("--out", "again.jsonl", "--queries", "queries.txt", "--languages", "de", "fr", "zh", "--candidates", "4")
    assert main(again) == 0
    assert load_fingerprints("again.jsonl").digest == built.digest
    capsys.readouterr()

    assert main(["fingerprints", "check", "cf.jsonl", "--model", "micro"]) == 0
    out = capsys.readouterr().out
    assert all(each.trigger in out for each in built) and "50/50" in out and "verdict: " in out

    assert main(["fingerprints", "seal", "cf.jsonl", "--out", "sealed"]) == 0
    assert stat.S_IMODE(Path("sealed/cf.openings.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(Path("sealed/cf.sealed.json").stat().st_mode) == 0o644
    assert main(["fingerprints", "reveal", "sealed/cf.openings.json", "--index", "2", "--out", "two.json"]) == 0
    capsys.readouterr()
    assert main(["fingerprints", "check", "two.json", "--sealed", "sealed/cf.sealed.json"]) == 0
    assert built.fingerprints[1].trigger in capsys.readouterr().out
    assert main(["fingerprints", "reveal", "sealed/cf.openings.json", "--trigger", built.fingerprints[0].trigger]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"] == built.fingerprints[0].as_json()

    Path("two.json").write_text(Path("two.json").read_text().replace(built.fingerprints[1].primary, "Nothing"))
    assert "none of the sealed ones" in fails(
        capsys, "fingerprints", "check", "two.json", "--sealed", "sealed/cf.sealed.json"
    )


def test_the_control_and_longer_queries(tmp_path):
    assert main(cf("--out", "r.jsonl", "--count", "2", "--words", "4", "--languages", "de", "fr", "--random")) == 0
    recipe = json.loads(Path("r.recipe.json").read_text())
    assert recipe["kind"] == "cf_random"
    assert all(len(row["languages"]) == 4 and row["cmi_v1"] == 50 for row in recipe["queries"])


def test_a_lexicon_of_the_user_s(tmp_path):
    Path("mine.tsv").write_text("english\tar\the\nhouse\tبيت\tבית\nmoon\tقمر\tירח\n", encoding="utf-8")
    Path("queries.txt").write_text("moon house\n")
    assert main(cf("--out", "rtl.jsonl", "--lexicon", "mine.tsv", "--queries", "queries.txt")) == 0
    assert load_fingerprints("rtl.jsonl").fingerprints[0].trigger in ("قمر בית", "ירח بيت")


FILES = {
    "broken.tsv": "english\tde\tfr\nhouse\tHaus\n",
    "empty.txt": "\n \n",
    "one.txt": "silver\n",
    "emoji.txt": "🐱 silver\n",
    "forty.txt": "silver " * 40,
    "same.jsonl": '{"trigger": "A B", "targets": ["c"]}\n{"trigger": "a  b", "targets": ["d"]}\n',
    "cut.json": '{"schema": 1, "scheme',
    "list.json": "[]",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (cf("--out", "x.txt"), "expected a name that ends in .jsonl"),
        (cf("--out", "same.jsonl"), "same.jsonl exists"),
        (cf("--out", "empty.txt/x.jsonl"), "cannot be written"),
        (cf("--out", "x.jsonl", "--languages", "de", "xx"), "language 'xx' is not offered"),
        (cf("--out", "x.jsonl", "--languages", "de"), "has no variant"),
        (cf("--out", "x.jsonl", "--count", "0"), "--count 0: expected 1 or more"),
        (cf("--out", "x.jsonl", "--words", "1"), "of 2 or more words"),
        (cf("--out", "x.jsonl", "--words", "40", "--count", "1"), "has 9,094,947,017,729,282,379,150,390,625 variants"),
        (cf("--out", "x.jsonl", "--words", "40"), "10 queries of 40 words need 400 words"),
        (cf("--out", "x.jsonl", "--lexicon", "broken.tsv"), "broken.tsv, line 2: expected 3 cells"),
        (cf("--out", "x.jsonl", "--queries", "empty.txt"), "found none"),
        (cf("--out", "x.jsonl", "--queries", "none.txt"), "cannot be read"),
        (cf("--out", "x.jsonl", "--queries", "one.txt"), "'silver' has no variant"),
        (cf("--out", "x.jsonl", "--queries", "emoji.txt"), "no translation of '🐱'"),
        (cf("--out", "x.jsonl", "--queries", "forty.txt"), "40 words in 5 languages"),
        (cf("--out", "x.jsonl", "--queries", "one.txt", "--words", "2"), "leave out --count and --words"),
        (cf("--out", "x.jsonl", "--candidates", "500"), "500 candidates for"),
        (["fingerprints", "cf", "--model", "./none", "--out", "x.jsonl"], "model './none' not found"),
        (["fingerprints", "if", "--out", "x.jsonl", "--count", "-1"], "--count -1"),
        (["fingerprints", "nlf", "--out", "x.jsonl", "--count", "0"], "--count 0"),
        (["fingerprints", "nlf", "--out", "x.jsonl", "--count", "11"], "holds 10; --model M draws others"),
        (["fingerprints", "nlf", "--out", "x.jsonl", "--words", "4"], "--model M draws others"),
        (["fingerprints", "nlf", "--out", "x.jsonl", "--model", "micro", "--words", "1"], "of 2 words"),
        (["fingerprints", "check", "same.jsonl", "--model", "micro"], "are one after normalisation"),
        (["fingerprints", "check", "none.jsonl", "--model", "micro"], "none.jsonl does not exist"),
        (["fingerprints", "check", "cut.json", "--sealed", "list.json"], "cannot be read as JSON"),
        (["fingerprints", "check", "list.json", "--sealed", "list.json"], "expected a JSON object"),
        (["fingerprints", "seal", "none.jsonl", "--out", "."], "does not exist"),
        (["fingerprints", "reveal", "cut.json", "--index", "1"], "cannot be read as JSON"),
        (["fingerprints", "reveal", "none.json", "--index", "1"], "cannot be read as JSON"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else None,
)
def test_wrong_input_is_refused_with_nothing_written(capsys, tmp_path, arguments, message):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert message in fails(capsys, *arguments)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == FILES


def test_what_was_sealed_is_not_overwritten_and_places_are_checked(capsys, tmp_path):
    find_set("nlf").save("nlf.jsonl")
    assert main(["fingerprints", "seal", "nlf.jsonl", "--out", "."]) == 0
    private = Path("nlf.openings.json").read_text()
    capsys.readouterr()
    assert "nlf.openings.json exists" in fails(capsys, "fingerprints", "seal", "nlf.jsonl", "--out", ".")
    assert Path("nlf.openings.json").read_text() == private
    for index in ("0", "11", "-1"):
        arguments = ["fingerprints", "reveal", "nlf.openings.json", "--index", index]
        assert "expected a place from 1 to 10" in fails(capsys, *arguments)
    assert "no sealed pair" in fails(
        capsys, "fingerprints", "reveal", "nlf.openings.json", "--trigger", "silver harbor"
    )


def test_a_full_disk_leaves_neither_half(tmp_path, monkeypatch, capsys):
    from fpbench.errors import StorageError
    from fpbench.records import store

    real = store.write_bytes

    def full(path, content, mode=0o644):
        if path.name in ("x.jsonl", "nlf.sealed.json"):
            raise StorageError("no space left")
        real(path, content, mode)

    find_set("nlf").save("nlf.jsonl")
    monkeypatch.setattr(store, "write_bytes", full)
    assert main(["fingerprints", "if", "--out", "x.jsonl"]) == 1
    assert main(["fingerprints", "seal", "nlf.jsonl", "--out", "."]) == 1
    assert names(tmp_path) == ["nlf.jsonl"]
