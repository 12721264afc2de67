"""Checkpoints of every make: PEFT adapters, quantised ones, architectures without weights."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.checkpoints import checkpoint_digest, resolve
from fpbench.models.handed_in import remarks
from fpbench.models.loading import load_architecture, load_model, pick_device
from fpbench.records.store import read_records

# peft asks transformers for it
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

PROMPT = torch.tensor([[1, 17, 300, 42, 5]])


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter on a copy of the bundled model, and the logits of the two together."""
    folder = tmp_path_factory.mktemp("peft")
    shutil.copytree(MODEL, folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return folder, logits(adapted.eval())


def test_an_adapter_is_merged_into_its_base(adapter):
    folder, expected = adapter
    model, tokenizer = load_model(resolve(str(folder / "adapter")))
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not torch.allclose(logits(load_model(MODEL)[0]), expected, atol=1e-2)
    assert tokenizer.encode("house") == load_model(MODEL)[1].encode("house")


def test_the_digest_of_an_adapter_covers_its_base(adapter):
    folder, _ = adapter
    before = checkpoint_digest(folder / "adapter")
    config = folder / "base" / "generation_config.json"
    kept = config.read_text()
    config.write_text(kept + "\n")
    changed = checkpoint_digest(folder / "adapter")
    config.write_text(kept)
    assert changed != before == checkpoint_digest(folder / "adapter")


@pytest.mark.parametrize(
    ("base", "message"),
    [("/no/such/folder", "base of adapter .* cannot be had"), (None, "does not name its base"), ("", "does not name")],
)
def test_an_adapter_without_its_base_is_refused(adapter, tmp_path, base, message):
    shutil.copytree(adapter[0] / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(InputError, match=message):
        load_model(resolve(str(tmp_path / "adapter")))


def renamed(folder, change):
    """An adapter folder whose tensors are what ``change`` makes of them."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: {name.replace("layers.0.", "layers.9."): old[name] for name in old}, "has 4 tensors that fit no"),
        (lambda old: {name.replace("model.model.", "model.model.text."): old[name] for name in old}, "fit no module"),
        (lambda old: {name: old[name] for name in old if "layers.1.self_attn.q_proj" not in name}, "lacks 2 of its"),
        (lambda old: {name: old[name] for name in old if "lora_A" in name}, r"lacks 12 of its .*lora_B"),
        (lambda old: old | {"base_model.model.gate.lora_A.weight": torch.zeros(4, 4)}, "has 1 tensors .*gate.lora_A"),
    ],
)
def test_an_adapter_that_is_not_wholly_applied_is_refused(adapter, tmp_path, change, message):
    shutil.copytree(adapter[0] / "adapter", tmp_path / "adapter")
    with pytest.raises(InputError, match=message):
        load_model(resolve(str(renamed(tmp_path / "adapter", change))))


def on_top(adapter, folder, base):
    """A copy of an adapter that names another base."""
    shutil.copytree(adapter[0] / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    return folder


def test_adapters_on_adapters_are_merged_in_order(adapter, tmp_path):
    second = on_top(adapter, tmp_path / "second", adapter[0] / "adapter")
    third = on_top(adapter, tmp_path / "third", second)
    weights = [load_model(resolve(str(each)))[0].state_dict() for each in (MODEL, second, third)]
    update = load_model(resolve(str(adapter[0] / "adapter")))[0].state_dict()
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.3.self_attn.v_proj.weight"):
        change = update[name] - weights[0][name]
        assert change.norm() > 0.1
        assert torch.allclose(weights[1][name] - weights[0][name], 2 * change, atol=1e-5)
        assert torch.allclose(weights[2][name] - weights[0][name], 3 * change, atol=1e-5)
    assert remarks(third) == ["3 PEFT adapters, merged into base one after the other"]
    assert load_architecture(third).config.num_hidden_layers == 6
    assert checkpoint_digest(third) != checkpoint_digest(second)


@pytest.mark.parametrize("length", [1, 2])
def test_adapters_in_a_circle_are_refused(adapter, tmp_path, length):
    names = [tmp_path / str(number) for number in range(length)]
    for number, folder in enumerate(names):
        on_top(adapter, folder, names[(number + 1) % length])
    for use in (load_model, checkpoint_digest, load_architecture):
        with pytest.raises(InputError, match="is its own base"):
            use(names[0])


def test_an_adapter_beside_a_whole_model_is_refused(adapter, tmp_path):
    """It would be applied to the model in the same folder, whether or not it is merged into that already."""
    shutil.copytree(MODEL, tmp_path / "both")
    for path in (adapter[0] / "adapter").glob("adapter*"):
        shutil.copy(path, tmp_path / "both")
    with pytest.raises(InputError, match=r"holds a whole model \(model.safetensors\) and an adapter"):
        resolve(str(tmp_path / "both"))
    # Without its weights it is the adapter, with the config that trainers put beside it.
    (tmp_path / "both" / "model.safetensors").unlink()
    assert torch.allclose(logits(load_model(resolve(str(tmp_path / "both")))[0]), adapter[1], atol=1e-5)


def test_an_adapter_that_is_no_update_of_weights_is_refused(adapter, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match="is of kind PROMPT_TUNING, which cannot be merged into its base"):
        load_model(resolve(str(tmp_path / "prompt")))


def test_an_adapter_in_pickle_is_refused(adapter, tmp_path):
    shutil.copytree(adapter[0] / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match="only pickle weights"):
        resolve(str(tmp_path / "adapter"))


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory):
    """The bundled model saved in NF4 before its first forward pass, and its logits."""
    folder = tmp_path_factory.mktemp("quantised") / "nf4"
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=settings, dtype=torch.float32)
    model.save_pretrained(folder)
    load_model(MODEL)[1].save_pretrained(folder)
    return folder, logits(model)


def test_a_saved_four_bit_checkpoint_answers_as_it_did(four_bit):
    folder, expected = four_bit
    model, _ = load_model(resolve(str(folder)))
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not torch.allclose(logits(load_model(MODEL)[0]), expected, atol=1e-2)


def test_a_quantised_checkpoint_is_measured_at_origin_alone(four_bit, capsys, tmp_path, tiny_profile):
    folder, _ = four_bit
    out = tmp_path / "out"
    arguments = ["evaluate", str(folder), "--fingerprints", "nlf", "--profile", tiny_profile, "--out", str(out)]
    assert main([*arguments, "--condition", "origin", "ria30"]) == 2
    assert "is quantised already" in capsys.readouterr().err and not out.exists()
    assert main(arguments) == 0, capsys.readouterr().err
    assert {record.status for record in read_records(out / "records")} == {"done"}


def test_an_architecture_takes_no_memory_and_has_every_name_and_shape():
    architecture, (model, _) = load_architecture(MODEL), load_model(MODEL)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in architecture.named_parameters()} == shapes
    assert {parameter.device.type for parameter in architecture.parameters()} == {"meta"}


def test_the_device_is_picked_without_torch():
    code = (
        "import sys; from fpbench.models.loading import pick_device; print(pick_device(None), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert done.stdout.split() == [expected, "False"]
    assert pick_device("cpu") == "cpu"
