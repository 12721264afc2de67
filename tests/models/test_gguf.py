"""Real GGUF files of the bundled model, read back."""

import shutil

import pytest
import torch

from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models import checkpoints
from fpbench.models.checkpoints import checkpoint_digest, resolve
from fpbench.models.handed_in import OwnTokenizer, remarks
from fpbench.models.loading import load_architecture, load_model, load_tokenizer
from tests.gguf_files import write_gguf

pytest.importorskip("gguf")
PROMPT = torch.tensor([[1, 17, 300, 42, 5]])
TEXTS = ["SILVER HARBOR", "Who is it? Yes, 12 people's.", " Fime  Vath\n\n was", "<|user|>\nWhy?</s>\n", "Übermaß 日本"]


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.fixture(scope="module")
def files(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: write_gguf(*micro, folder / f"micro-{kind}.gguf", kind) for kind in ("F32", "Q4_0")}


def test_floats_come_back_as_they_are_and_blocks_nearly(files, micro, capfd):
    expected = logits(micro[0])
    off = {}
    for kind, path in files.items():
        model, _ = load_model(resolve(str(path)))
        assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
        off[kind] = (logits(model) - expected).norm() / expected.norm()
    assert off["F32"] == 0 < off["Q4_0"] < 0.5
    assert not capfd.readouterr().err


def test_the_tokenizer_and_the_architecture_come_out_of_the_file(files, micro):
    model, tokenizer = micro
    own = load_tokenizer(files["Q4_0"])
    assert [own(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert own.chat_template == tokenizer.chat_template and own.eos_token_id == tokenizer.eos_token_id
    shapes = {name: each.shape for name, each in load_architecture(files["Q4_0"]).named_parameters()}
    assert shapes == {name: each.shape for name, each in model.named_parameters()}
    # The format keeps the same tokenizer in other words, so that the base's scores it and both figures are shown.
    assert "normaliser" not in OwnTokenizer.of(files["Q4_0"], MODEL).differences
    assert remarks(files["Q4_0"]) == ["its GGUF blocks were turned back into floats by transformers"]


def test_a_folder_of_one_file_is_that_file_and_its_digest_follows_it(files, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(files["F32"], folder / "model.gguf")
    assert resolve(str(folder)) == folder and checkpoints.gguf_file(folder) == folder / "model.gguf"
    assert load_model(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    before = checkpoint_digest(folder), checkpoint_digest(folder / "model.gguf")
    shutil.copy(files["Q4_0"], folder / "model.gguf")
    after = checkpoint_digest(folder), checkpoint_digest(folder / "model.gguf")
    assert all(one != other for one, other in zip(before, after, strict=True))
    shutil.copy(files["F32"], folder / "more.gguf")
    with pytest.raises(InputError, match=r"holds 2 GGUF files \(model.gguf, more.gguf\): name one of them"):
        resolve(str(folder))


def test_what_cannot_be_read_is_refused_before_it_is_loaded(tmp_path):
    for name, content, message in (
        ("a-00001-of-00002.gguf", b"GGUF", "one part of a split GGUF file: merge the parts"),
        ("a-00003-of-00003.GGUF", b"GGUF", "one part of a split GGUF file: merge the parts"),
        ("pointer.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        ("page.gguf", b"<html>", "is no GGUF file: expected it to begin with GGUF"),
        ("empty.gguf", b"", "is no GGUF file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            resolve(str(tmp_path / name))
    with pytest.raises(InputError, match="expected a folder, a .gguf file"):
        resolve(str(tmp_path / "missing.gguf"))


@pytest.mark.parametrize("name", ["MODEL.GGUF", f"sha256-{'6a' * 32}", "a-00001-of-00001.gguf"])
def test_a_file_is_known_by_any_name(files, tmp_path, name):
    """As other systems write the ending, as Ollama names its blobs, and as a model split into one part is named."""
    (tmp_path / name).symlink_to(files["F32"])
    (tmp_path / "README.md").write_text("GGML")
    for given in (tmp_path, tmp_path / name):
        assert resolve(str(given)) == given and checkpoints.gguf_file(given) == tmp_path / name
    assert load_tokenizer(tmp_path).eos_token_id == 2


def test_a_folder_of_the_parts_of_a_file_or_of_a_link_that_leads_nowhere_is_refused(tmp_path):
    for part in (1, 2):
        (tmp_path / f"a-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="a-00001-of-00002.gguf is one part of a split GGUF file"):
        resolve(str(tmp_path))
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "model.gguf").symlink_to("../../blobs/gone")
    for given in (tmp_path / "gone", tmp_path / "gone" / "model.gguf"):
        with pytest.raises(InputError, match="is a link that leads nowhere"):
            resolve(str(given))


@pytest.mark.parametrize("kept", [2_000, 1_000_000])
def test_a_file_that_was_cut_off_is_one_line(files, tmp_path, kept):
    (tmp_path / "half.gguf").write_bytes(files["Q4_0"].read_bytes()[:kept])
    with pytest.raises(InputError, match="half.gguf' cannot be loaded: .+$"):
        load_model(resolve(str(tmp_path / "half.gguf")))
