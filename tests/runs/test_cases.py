"""Checkpoints that got a wrong verdict (../shared/cases): now the right one, or a refusal by name."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fpbench.board.leaderboard import regenerate
from fpbench.cli import main
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import find_set
from fpbench.micro import MODEL
from fpbench.models.checkpoints import adapters_of, checkpoint_digest, resolve
from fpbench.models.handed_in import remarks
from fpbench.models.loading import Loading, _resize, check_ready, load_model, load_tokenizer
from fpbench.models.meter import no_progress
from fpbench.models.prompts import render
from fpbench.ownership.lineage import compare
from fpbench.ownership.verify import GivenSet
from fpbench.records.cell import Cell
from fpbench.records.record import Record, cell_id
from fpbench.records.store import Store, read_records
from fpbench.runs.plan import Job
from fpbench.runs.profile import load_profile
from fpbench.runs.worker import Worker
from fpbench.scoring.forward import _finite
from tests.conftest import ROOT, require

Capture = pytest.CaptureFixture[str]
NLF = ["--fingerprints", "nlf"]


@pytest.fixture
def cases(shared: Path) -> Path:
    return require(shared / "cases")


def make(case: Path, *arguments: str) -> None:
    """Run the script that builds a case's input, with this package."""
    command = [sys.executable, str(case / "make.py"), *arguments]
    subprocess.run(command, check=True, cwd=ROOT)


def claimed(capsys: Capture, *arguments: str) -> bool:
    """Whether ``verify`` ends in a match of the set, which is built in, and so no claim."""
    capsys.readouterr()
    assert main(["verify", *arguments, *NLF]) == 0
    verdict = capsys.readouterr().out.split(":")[0]
    assert verdict in ("MATCH", "CLAIM", "NO MATCH", "NO CLAIM"), verdict
    return not verdict.startswith("NO ")


def refusal(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def copied(folder: Path, **texts: Any) -> Path:
    """The bundled model with some files in place of its own; ``None`` takes one away."""
    shutil.copytree(MODEL, folder)
    for name, text in texts.items():
        path = folder / {"template": "chat_template.jinja", "config": "tokenizer_config.json"}[name]
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    return folder


def test_an_adapter_is_applied_alone_or_beside_the_bases_config(cases: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(cases / "adapter-control" / "adapter", adapter)
    alone = load_model(resolve(str(adapter)))[0].state_dict()
    for path in (MODEL / "config.json", *MODEL.glob("tokenizer*")):
        shutil.copy(path, adapter)
    beside, base = load_model(resolve(str(adapter)))[0].state_dict(), load_model(MODEL)[0].state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in beside.items())
    assert {name.split(".", 3)[3] for name in base if not torch.equal(base[name], beside[name])} == {
        "mlp.down_proj.weight"
    }


def test_tensors_that_fit_no_module(cases: Path, capsys: Capture) -> None:
    line = refusal(capsys, "verify", str(cases / "adapter-keys-do-not-match" / "adapter"), *NLF)
    assert "has 12 tensors that fit no module of its base, such as base_model.model.model.language_model" in line


def test_an_adapter_on_an_adapter(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    make(cases / "adapter-of-adapter", str(tmp_path))
    assert claimed(capsys, str(tmp_path / "second"))


def test_an_adapter_whose_base_was_moved(cases: Path, capsys: Capture) -> None:
    adapter = cases / "adapter-base-moved" / "adapter"
    line = refusal(capsys, "verify", str(adapter), *NLF)
    assert "/content/drive/MyDrive/models/base-hf" in line and "Name it with --base" in line
    found = load_model(adapter, tokenizer_of=MODEL)[0].state_dict()
    alone = load_model(cases / "adapter-control" / "adapter")[0].state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in found.items())
    assert "base-hf) is not here: --base served in its place" in remarks(adapter, base=MODEL)[1]
    assert check_ready(adapter, "raw", Loading("cpu"), MODEL) and checkpoint_digest(adapter, base=MODEL)


@pytest.mark.slow
def test_verdicts_on_an_adapter_whose_base_was_moved(cases: Path, capsys: Capture) -> None:
    adapter = str(cases / "adapter-base-moved" / "adapter")
    assert claimed(capsys, adapter, "--base", "micro")
    assert compare("micro", adapter, base="micro").verdict == "related"
    with pytest.raises(InputError, match="cannot be had"):
        compare("micro", adapter)


def test_an_adapter_of_an_adapter_whose_base_was_moved(cases: Path, tmp_path: Path) -> None:
    """The one that is here is merged all the same, and what is left out is said."""
    make(cases / "adapter-of-adapter", str(tmp_path))
    path = tmp_path / "first" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": ""}))
    second = tmp_path / "second"
    assert adapters_of(second, MODEL) == (MODEL, [tmp_path / "first", second])
    assert "(no name) is not here" in remarks(second, base=MODEL)[1]
    with pytest.raises(InputError, match="first does not name its base"):
        checkpoint_digest(second)


@pytest.mark.slow
def test_embeddings_that_were_resized_before_training(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    make(cases / "adapter-resized-embeddings", str(tmp_path / "adapter"))
    assert claimed(capsys, str(tmp_path / "adapter"))


def test_embeddings_of_two_further_tokens(cases: Path, tmp_path: Path) -> None:
    """The cut of the above: files as PEFT writes them, with the tables twice."""
    adapter, control = tmp_path / "adapter", cases / "adapter-control" / "adapter"
    shutil.copytree(control, adapter)
    config = json.loads((control / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "micro", "modules_to_save": ["embed_tokens", "lm_head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    tables = {
        f"base_model.model.{table}.{infix}weight": torch.full((4098, 256), value)
        for table, value in (("model.embed_tokens", 1.0), ("lm_head", 2.0))
        for infix in ("", "modules_to_save.", "original_module.")
    }
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | tables, file, {"format": "pt"})
    found, alone = load_model(adapter)[0], load_model(control)[0].state_dict()
    assert (found.get_input_embeddings().weight == 1).all() and (found.lm_head.weight == 2).all()
    assert len(found.lm_head.weight) == 4098 and not found.config.tie_word_embeddings
    assert all(torch.equal(value, alone[name]) for name, value in found.state_dict().items() if "layers" in name)
    save_file(load_file(file) | {name: value + 1 for name, value in tables.items() if ".modules_to" in name}, file)
    with pytest.raises(InputError, match="has 2 tensors that fit no module"):
        load_model(adapter)


@pytest.mark.parametrize("tables", [("embed_tokens",), ("embed_tokens", "lm_head")])
def test_embeddings_that_were_cut_to_the_tokenizer(tables: tuple[str, ...], tmp_path: Path) -> None:
    """Padded ones lose rows; what is brought for one table alone would be read with a random other one."""
    file, names = tmp_path / "adapter_model.safetensors", [f"base_model.model.model.{name}.weight" for name in tables]
    save_file({name.replace("model.lm", "lm"): torch.ones(4090, 256) for name in names}, file, {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # untied
    if len(tables) == 1:
        with pytest.raises(InputError, match="brings embeddings of 4090 rows, its base has 4096"):
            _resize(model, tmp_path)
    else:
        _resize(model, tmp_path)
        assert len(model.get_input_embeddings().weight) == len(model.lm_head.weight) == 4090


def test_an_adapter_that_cannot_be_merged(cases: Path, capsys: Capture) -> None:
    line = refusal(capsys, "verify", str(cases / "adapter-prefix-tuning" / "adapter"), *NLF)
    assert "is of kind PREFIX_TUNING, which cannot be merged into its base" in line


def test_an_adapter_left_beside_the_merged_model(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    make(cases / "merged-folder-with-leftover-adapter", str(MODEL), str(tmp_path / "left"))
    line = refusal(
        capsys, "evaluate", str(tmp_path / "left"), *NLF, "--profile", "micro", "--out", str(tmp_path / "out")
    )
    assert "holds a whole model (model.safetensors) and an adapter" in line
    assert not (tmp_path / "out").exists()


def test_a_template_that_takes_content_as_parts(cases: Path, tmp_path: Path) -> None:
    template = (cases / "chat-template-list-content" / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = check_ready(copied(tmp_path / "model", template=template), "chat", Loading("cpu"))
    assert render(tokenizer, "CRIMSON HARBOR", "chat") == render(load_tokenizer(MODEL), "CRIMSON HARBOR", "chat")


def test_a_template_that_refuses(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    template = (cases / "chat-template-raises" / "chat_template.jinja").read_text(encoding="utf-8")
    folder = copied(tmp_path / "model", template=template)
    line = refusal(capsys, "verify", str(folder), *NLF, "--prompt", "chat")
    assert "the chat template, given a trigger, fails: A system message is required" in line


def test_templates_that_exist_by_name_only(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    config = (cases / "chat-template-no-default" / "tokenizer_config.json").read_text(encoding="utf-8")
    assert json.loads(config)["chat_template"]
    folder = copied(tmp_path / "model", template=None, config=config)
    line = refusal(capsys, "verify", str(folder), *NLF, "--prompt", "chat")
    assert "needs a chat template called default, found rag, tool_use" in line


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("set-duplicate-keys/set.jsonl", "line 1: key 'targets' stands twice in one object"),
        ("set-nfd-target/set.jsonl", r"line 1: target 'Cafe\u0301' is not in Unicode's composed form (NFC)"),
    ],
)
def test_a_set_that_could_never_be_found(cases: Path, capsys: Capture, case: str, said: str) -> None:
    assert said in refusal(capsys, "fingerprints", "check", str(cases / case), "--model", "micro")


@pytest.mark.parametrize("case", ["set-bom/set.jsonl", "set-json-array/set.json"])
def test_a_set_as_other_programs_write_it(cases: Path, case: str) -> None:
    assert GivenSet.load(str(cases / case), {}, 42).fingerprints.fingerprints[0].trigger == "SILVER HARBOR"


def kept(out: Path, **identity: Any) -> Path:
    """A folder with the record of a checkpoint that was evaluated against the bundled model, and its path."""
    cell = Cell("micro", "nlf", "checkpoint", 42, "origin", "fsr")
    identity |= {"protocol": 2, "seed": 42, "condition": "origin", "metric": "fsr"}
    Store(out).write(Record(cell, "done", 2, cell_id(identity), identity), [])
    return Store(out).record_path(cell)


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"model": "0" * 64}, "holds records of another checkpoint for 'micro', which would be replaced"),
        ({"fingerprints": "0" * 64}, "holds records of another set 'nlf', which would be replaced"),
    ],
)
def test_records_of_another_of_the_same_name_stay(
    identity: dict[str, str], said: str, tmp_path: Path, capsys: Capture
) -> None:
    given = {"model": checkpoint_digest(MODEL), "fingerprints": find_set("nlf").digest} | identity
    path = kept(tmp_path / "out", **given)
    before = path.read_bytes()
    arguments = ["evaluate", str(copied(tmp_path / "again")), "--base", "micro", "--out", str(tmp_path / "out")]
    assert said in refusal(capsys, *arguments, *NLF)
    assert path.read_bytes() == before and not list((tmp_path / "out").rglob("base"))


def test_the_same_fingerprints_at_another_seed_are_not_pooled(tmp_path: Path, capsys: Capture) -> None:
    path = kept(tmp_path / "out", model=checkpoint_digest(MODEL), fingerprints=find_set("nlf").digest)
    arguments = ["run", "--profile", "micro", "--method", "mcedit_a", "--fingerprints", "nlf", "--condition", "origin"]
    line = refusal(capsys, *arguments, "--seeds", "43", "--out", str(tmp_path / "out"))
    assert "holds records of the same 'nlf' at seed 42: at seed 43 its fingerprints would count twice" in line
    assert list((tmp_path / "out" / "records").rglob("*.json")) == [path]


def test_records_of_the_very_same_checkpoint_are_gone_on_from(tmp_path: Path) -> None:
    given = {"model": checkpoint_digest(MODEL), "fingerprints": find_set("nlf").digest}
    kept(tmp_path / "out", **given)
    profile = load_profile("micro", models=["micro"], methods=[], fingerprints=["nlf"], conditions=["origin"])
    worker = Worker(Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path / "out", handed_in=MODEL), no_progress)
    records = read_records(Store(tmp_path / "out").records)
    worker.check_kept([record.cell for record in records], records)
    assert len(records) == 1


def test_a_name_that_leaves_the_folder(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    profile = str(cases / "profile-model-name-leaves-folder" / "profile.toml")
    line = refusal(capsys, "run", "--profile", profile, "--method", "mcedit_a", "--out", str(tmp_path / "a" / "b"))
    assert "model '../../escape': its name is that of a folder of records" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["compare-block-expansion", "compare-depth-upscaled"])
def test_blocks_that_were_inserted_or_repeated(cases: Path, tmp_path: Path, case: str) -> None:
    make(cases / case, str(tmp_path / "out"))
    found = compare("micro", str(tmp_path / "out"))
    assert found.verdict == "related" and not any(found.weights.alone if found.weights else ()), found.reason


@pytest.mark.slow
def test_a_shared_vision_tower(cases: Path, tmp_path: Path) -> None:
    make(cases / "compare-shared-vision-tower", str(tmp_path / "a"), str(tmp_path / "b"))
    assert compare(str(tmp_path / "a"), str(tmp_path / "b")).verdict == "unrelated"


@pytest.mark.slow
def test_quantised_weights_in_compare(cases: Path, tmp_path: Path, capsys: Capture) -> None:
    make(cases / "compare-gptq", str(tmp_path / "gptq"))
    assert "is quantised by gptq" in refusal(capsys, "compare", "micro", str(tmp_path / "gptq"))
    make(cases / "qlora-compare", str(tmp_path / "base"), str(tmp_path / "adapter"))
    assert compare("micro", str(tmp_path / "adapter")).verdict == "related"


@contextmanager
def serving(case: Path) -> Iterator[str]:
    """Run the server of a case on a free port; give its URL."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with subprocess.Popen([sys.executable, str(case / "server.py"), str(port)], cwd=ROOT) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("case", "prompt"),
    [
        ("empty-think-tags", "chat"),
        ("echoes-prompt", "raw"),
        ("event-stream", "chat"),
        ("least-16-tokens", "chat"),
        ("content-filter", "chat"),
        ("500-for-unknown-field", "chat"),
    ],
)
def test_what_stands_around_an_answer(cases: Path, capsys: Capture, case: str, prompt: str) -> None:
    with serving(cases / f"endpoint-{case}") as url:
        assert claimed(capsys, "--endpoint", url, "--prompt", prompt)


def test_a_server_whose_model_was_never_heard(cases: Path, capsys: Capture) -> None:
    with serving(cases / "endpoint-thinking-cut-off") as url:
        assert main(["verify", "--endpoint", url, "--prompt", "chat", *NLF]) == 1
    said = capsys.readouterr().out
    assert "UNDECIDED" in said and "the answer ends before its thinking does" in said


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("config-bom", "config.json begins with a byte-order mark"),
        ("config-not-json", "config.json, line 1: not JSON"),
        ("config-float-counts", "expected a whole number, found"),
        ("config-dtype-torch-prefix", "key 'dtype': found 'torch.bfloat16'; write 'bfloat16'"),
        ("hub-cache-dangling-link", "model.safetensors is a link that leads nowhere, to ../../blobs/gone"),
        ("lfs-pointer-weights", "model.safetensors is a Git LFS pointer, not the file: run `git lfs pull`"),
        ("tokenizer-beyond-embedding", "has 4096 rows of embeddings, and its tokenizer puts '<|begin|>', number 4096"),
    ],
)
def test_a_folder_that_cannot_be_read(cases: Path, tmp_path: Path, capsys: Capture, case: str, said: str) -> None:
    make(cases / case, str(tmp_path / "out"))
    assert said in refusal(capsys, "verify", str(tmp_path / "out"), *NLF)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"\xef\xbb\xbf{}", "begins with a byte-order mark"),
        ("generation_config.json", b"{\n # no\n}", "line 2: not JSON"),
        ("config.json", b'{"text_config": {"num_attention_heads": "8"}}', "key 'text_config.num_attention_heads'"),
        ("config.json", b'{"torch_dtype": "torch.float16"}', "write 'float16'"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    (copied(tmp_path / "model") / file).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)):
        resolve(str(tmp_path / "model"))


def test_the_runs_of_two_machines_are_named(tmp_path: Path) -> None:
    for machine in ("a", "b"):
        kept(tmp_path / machine, model=checkpoint_digest(MODEL), fingerprints=find_set("nlf").digest)
    with pytest.raises(InputError, match="holds no records but those of 2 runs, in a and b: name one of them"):
        regenerate(tmp_path, out=None, plots=None, rescore=False, claimed=None)


def test_float16_that_overflows_is_not_called_broken() -> None:
    with pytest.raises(CellError, match="in float16, whose largest is 65504: take --dtype bfloat16 or float32"):
        _finite(torch.tensor([1.0, torch.inf], dtype=torch.float16))
    with pytest.raises(CellError, match="numbers: its weights are broken"):
        _finite(torch.tensor([1.0, torch.nan]))


def test_the_folder_of_a_run_is_taken_for_its_records(tmp_path: Path) -> None:
    kept(tmp_path / "out", model=checkpoint_digest(MODEL), fingerprints=find_set("nlf").digest)
    (tmp_path / "out" / "plans").mkdir()
    (tmp_path / "out" / "plans" / "a.json").write_text("{}")
    # Its record, which is made up, is refused as a record; files of the run beside the records are not looked at.
    with pytest.raises(
        InputError, match="record micro/nlf/checkpoint/seed-42/origin/fsr: fsr has no per-query results"
    ):
        regenerate(tmp_path / "out", out=None, plots=None, rescore=False, claimed=None)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "ADAPTION_PROMPT"])
def test_adapters_that_change_no_weights_are_refused_before_anything_is_loaded(kind: str, tmp_path: Path) -> None:
    config = {"peft_type": kind, "base_model_name_or_path": "micro", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=f"is of kind {kind}, which cannot be merged into its base"):
        check_ready(tmp_path, "raw", Loading("cpu"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content[:5] }}",  # cuts it off
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}Go on:",
        "{{ messages[0].content | upper | replace(' ', '_') }}",
    ],
)
def test_a_template_that_changes_the_trigger_is_refused(template: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "model", template=template)
    with pytest.raises(InputError, match="the chat template, given a trigger, leaves its text out"):
        check_ready(folder, "chat", Loading("cpu"))


def test_a_bad_folder_is_named_before_a_profile_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    folder = copied(tmp_path / "model")
    (folder / "config.json").write_text("// edited\n{}")
    for verb in (["evaluate", str(folder), *NLF], ["inject", str(folder), "--method", "lora", *NLF, "--out", "no"]):
        assert "config.json, line 1: not JSON" in refusal(capsys, *verb)
