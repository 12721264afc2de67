"""What is refused before it is loaded, or as soon as it is, and what is loaded in any precision."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.checkpoints import checkpoint_digest, resolve
from fpbench.models.handed_in import OwnTokenizer, remarks
from fpbench.models.loading import (
    Loading,
    check_ready,
    end_ids,
    load_architecture,
    load_model,
    load_tokenizer,
)
from fpbench.models.prompts import render
from fpbench.scoring.responses import end_tokens

CPU = Loading("cpu")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WAYS = {
    "gptq": ({"bits": 4}, "optimum", "optimum"),
    "awq": ({"bits": 4, "group_size": 128}, "gptqmodel", "gptqmodel"),
    "compressed-tensors": (
        {"format": "pack-quantized", "config_groups": {}},
        "compressed_tensors",
        "compressed-tensors",
    ),
    "torchao": ({"quant_type": "int4_weight_only"}, "torchao", "torchao"),
    "quanto": ({"weights": "int4"}, "optimum", "optimum-quanto"),
    "aqlm": ({"in_group_size": 8}, "aqlm", "aqlm"),
}


def copied(folder, *left_out):
    return shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns(*left_out))


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("way", WAYS)
def test_a_way_of_quantising_that_cannot_run_here_names_what_to_install(tmp_path, way):
    settings, module, package = WAYS[way]
    if find_spec(module):
        pytest.skip(f"{package} is installed here")
    folder = copied(tmp_path / "model")
    changed(folder / "config.json", quantization_config={"quant_method": way} | settings)
    with pytest.raises(InputError, match=f"is quantised by {way}, which is refused: .*{package}") as error:
        check_ready(resolve(str(folder)), "raw", CPU)
    assert "\n" not in str(error.value)


def test_an_unknown_way_is_refused_and_bitsandbytes_runs(tmp_path):
    folder = copied(tmp_path / "model")
    for config in ({"quant_method": "magic"}, {"bits": 4}):
        changed(folder / "config.json", quantization_config=config)
        with pytest.raises(InputError, match="is quantised by (magic|an unnamed method), which is refused"):
            check_ready(folder, "raw", CPU)
    changed(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    check_ready(folder, "raw", CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_and_any_number_of_files(tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model", max_shard_size="4MB")
    load_tokenizer(MODEL).save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    loaded, _ = load_model(resolve(str(tmp_path / "model")))
    assert loaded.dtype == torch.float32
    assert all(
        torch.equal(own, other.float()) for own, other in zip(loaded.parameters(), model.parameters(), strict=True)
    )


def test_a_file_that_was_cut_off_is_one_line(tmp_path):
    folder = copied(tmp_path / "model")
    (folder / "model.safetensors").write_bytes((MODEL / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(InputError, match="model' cannot be loaded: .+$"):
        load_model(folder)


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.3.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 of its weights, such as model.layers.3.mlp.up_proj.weight"):
        load_model(folder)


def test_a_chat_needs_a_template(tmp_path):
    folder = copied(tmp_path / "model", "chat_template.jinja")
    check_ready(folder, "raw", CPU)
    with pytest.raises(InputError, match=r"model '.*model': prompt 'chat' needs a tokenizer with a chat template"):
        check_ready(folder, "chat", CPU)


PARTS = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }}Hello!", "leaves its text out"),
        ("{{ messages[0]['content'][:3] }}", "leaves its text out"),
        ("{{ messages[0]['content'] | lower }}", "leaves its text out"),
        ("{{ raise_exception('no system message') }}", "fails: no system message"),
        ("{% for m in messages %}", "fails: Unexpected end of template"),
        ("{{ messages[0].content.parts.text }}", "fails: "),
        ({"rag": "{{ messages[0]['content'] }}", "tools": "x"}, "template called default, found rag, tools"),
    ],
)
def test_a_template_that_does_not_render_a_trigger_is_refused(tmp_path, template, message):
    folder = copied(tmp_path / "model", "chat_template.jinja")
    named = template if isinstance(template, str) else [{"name": k, "template": v} for k, v in template.items()]
    changed(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(InputError, match=f"model '.*model': .*{message}[^\n]*$"):
        check_ready(folder, "chat", CPU)
    check_ready(folder, "raw", CPU)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (PARTS, "RED TOWER\n"),
        ("{{ messages[0]['content'] | trim }}", "RED TOWER"),
        (
            "{% if messages[0]['content'] is string %}s{{ messages[0]['content'] }}{% else %}p{% endif %}",
            "sRED TOWER\n",
        ),
    ],
)
def test_a_trigger_is_given_to_a_template_in_the_form_that_it_takes(tmp_path, template, rendered):
    folder = copied(tmp_path / "model", "chat_template.jinja")
    changed(folder / "tokenizer_config.json", chat_template=template)
    assert render(check_ready(folder, "chat", CPU), "RED TOWER\n", "chat") == rendered


def test_the_tokenizer_of_another_serves_where_there_is_none(tmp_path):
    folder = copied(tmp_path / "model", "tokenizer.json")
    with pytest.raises(InputError, match="brings no tokenizer: .*--base"):
        check_ready(folder, "raw", CPU)
    assert check_ready(folder, "chat", CPU, MODEL).get_vocab() == load_tokenizer(MODEL).get_vocab()
    assert load_model(folder, tokenizer_of=MODEL)[1].chat_template
    assert remarks(folder) == ["it brings no tokenizer: the base's serves"]
    assert remarks(MODEL) == [] and OwnTokenizer.of(folder, MODEL) is None is OwnTokenizer.of(MODEL, MODEL)


def swapped(written):
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def added(written):
    written["added_tokens"].append(written["added_tokens"][-1] | {"id": 4095, "content": "Falcon", "special": False})


REPLACED = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
PARTS = {
    "normaliser": lambda written: written.update(normalizer=REPLACED),
    "pre-tokeniser": lambda written: written.update(pre_tokenizer=written["pre_tokenizer"] | {"use_regex": False}),
    "vocabulary": swapped,
    "post-processor": lambda written: written.update(post_processor=None),
    "decoder": lambda written: written.update(decoder={"type": "Sequence", "decoders": [written["decoder"], REPLACED]}),
    "added tokens": added,
}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_tokenizer_that_differs_is_named_and_the_base_s_serves(tmp_path, part):
    folder = copied(tmp_path / "model")
    written = json.loads((folder / "tokenizer.json").read_text())
    PARTS[part](written)
    (folder / "tokenizer.json").write_text(json.dumps(written))
    own = OwnTokenizer.of(folder, MODEL)
    assert own is not None and own.differences == (part,) and own.remark in remarks(folder, own)
    served, expected = load_model(folder, tokenizer_of=MODEL)[1], load_tokenizer(MODEL)
    assert served.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()


def test_the_chat_template_and_what_ends_a_response_are_the_base_s_too(tmp_path):
    folder = copied(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} Falcon")
    changed(folder / "generation_config.json", eos_token_id=[7])
    own = OwnTokenizer.of(folder, MODEL)
    assert own is not None and own.differences == ("chat template", "end-of-text ids")
    model, tokenizer = load_model(folder, tokenizer_of=MODEL)
    assert tokenizer.chat_template == load_tokenizer(MODEL).chat_template
    assert end_tokens(model, tokenizer) == {2}
    with own.serving(model) as brought:
        assert brought.chat_template.endswith("Falcon") and end_tokens(model, brought) == {7}
    assert end_tokens(model, tokenizer) == {2}
    (folder / "generation_config.json").unlink()  # those of the config then count, as they do in a loaded model
    changed(folder / "config.json", eos_token_id=9)
    assert end_ids(folder, tokenizer) == end_tokens(load_model(folder)[0], tokenizer) == {9}


def test_a_checkpoint_that_lacks_tokens_of_its_base_is_refused(tmp_path):
    folder = copied(tmp_path / "model")
    changed(folder / "config.json", vocab_size=4000)
    with pytest.raises(InputError, match="knows 4000 tokens, its base's tokenizer 4096, which is to score"):
        check_ready(folder, "raw", CPU, MODEL)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MyConfig(LlamaConfig):  # transformers marks the class itself, for the rest of the process
    model_type = "mine"

class Mine(LlamaForCausalLM):
    config_class = MyConfig
"""


def test_remote_code_is_run_if_asked_for_and_not_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = copied(tmp_path / "model")
    named = {"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.MyConfig"}
    (folder / "mine.py").write_text(CODE)
    changed(folder / "config.json", auto_map=named, model_type="nobody-knows-it")
    with pytest.raises(InputError, match="cannot be loaded: .*(custom code|trust_remote_code)"):
        load_model(resolve(str(folder)))
    model, _ = load_model(resolve(str(folder)), trust_remote_code=True)
    assert type(model).__name__ == "Mine"


def test_pickled_weights_are_read_if_asked_for_and_not_otherwise(tmp_path, micro):
    folder = copied(tmp_path / "model", "*.safetensors")
    torch.save(micro[0].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has only pickle weights \(pytorch_model.bin\): expected safetensors"):
        resolve(str(folder))
    model, _ = load_model(resolve(str(folder), allow_pickle=True), allow_pickle=True)
    assert all(torch.equal(own, other) for own, other in zip(model.parameters(), micro[0].parameters(), strict=True))


def test_a_model_that_was_deleted_while_in_use_is_one_line_that_says_so(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(MODEL, folder)
    loading = Loading("cpu", "float32")
    shutil.rmtree(folder)
    for use in (lambda: loading.load(folder), lambda: load_architecture(folder), lambda: checkpoint_digest(folder)):
        with pytest.raises(InputError, match="base' is not there any more: it was removed or moved") as raised:
            use()
        assert "huggingface" not in str(raised.value) and "\n" not in str(raised.value)
