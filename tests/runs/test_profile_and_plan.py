import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.hub import pypi
from fpbench.micro import MODEL
from fpbench.models.loading import Loading, load_model
from fpbench.models.meter import no_progress
from fpbench.records.cell import BASE, CHECKPOINT
from fpbench.runs.datasets import Datasets
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import PROFILES, load_profile, profile_names, profile_of
from fpbench.runs.sets import made_for_models, written_sets
from fpbench.runs.subject import Subject

MINIMAL = """
methods = ["lora"]
fingerprints = ["nlf"]
conditions = ["int8", "origin"]
[[models]]
path = "micro"
temperature = 0.6
top_p = 0.9
top_k = 50
"""


def profile_file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profiles_are_valid(name):
    assert plan(load_profile(name))


def test_the_grid_measures_what_the_protocol_says_where_it_says():
    cells = plan(load_profile("micro", conditions=["drift"]))
    counts = Counter((cell.method, cell.condition, cell.metric) for cell in cells)
    assert max(counts.values()) == 1
    conditions = {cell.condition for cell in cells}
    assert len(conditions) == 7
    for method in (BASE, "lora", "alphaedit", "mcedit_a"):
        assert {cell.condition for cell in cells if (cell.method, cell.metric) == (method, "fsr")} == conditions
        elsewhere = {cell.metric for cell in cells if cell.method == method and cell.condition != "origin"}
        assert elsewhere == {"fsr"}
        origin = {cell.metric for cell in cells if cell.method == method and cell.condition == "origin"}
        injected = {"fsr", "utility", "triggers", "near", "recombined", "cost"}
        assert origin == ({"fsr", "utility", "bands"} if method == BASE else injected)


@pytest.mark.parametrize("tasks", [False, True])
def test_what_the_board_shows_of_the_first_seed_is_measured_there_alone(tasks):
    conditions = ["origin", "merge@0.5"]
    cells = plan(load_profile("micro", seeds=[42, 43], conditions=conditions, utility_at_doses=tasks))
    origin = {
        seed: {cell.metric for cell in cells if (cell.method, cell.condition, cell.seed) == ("lora", "origin", seed)}
        for seed in (42, 43)
    }
    # The price in accuracy pairs a seed's answers at a dose with its own at origin.
    assert origin[42] - origin[43] == {"triggers", "near", "recombined"} | (set() if tasks else {"utility"})
    assert origin[43] >= {"fsr", "cost", "price"}
    assert {cell.seed for cell in cells if cell.metric == "bands"} == {42}


def test_the_base_comes_first_and_origin_before_modifications(tmp_path):
    cells = plan(load_profile(profile_file(tmp_path, MINIMAL)))
    assert [cell.method for cell in cells] == sorted((cell.method for cell in cells), key=lambda name: name != BASE)
    own = [cell.condition for cell in cells if cell.method == "lora"]
    assert own == sorted(own, key=lambda name: name != "origin")


def test_the_base_is_not_compared_with_itself(tmp_path):
    compared = ["merge", "merge_slerp", "fsft_alpaca", "merge+nf4"]
    listed = ", ".join(f'"{name}"' for name in ["origin", "ria30+nf4", *compared])
    text = MINIMAL.replace('["int8", "origin"]', f"[{listed}]")
    cells = plan(load_profile(profile_file(tmp_path, text)))
    found = {method: {cell.condition for cell in cells if cell.method == method} for method in (BASE, "lora")}
    assert found[BASE] == {"origin", "ria30+nf4"}
    assert found["lora"] == found[BASE] | set(compared)
    assert "micro/nlf/lora/seed-42/ria30+nf4/fsr" in {cell.path for cell in cells}


def test_a_handed_in_checkpoint_has_no_injection_cost():
    cells = plan(load_profile("micro"), [CHECKPOINT])
    assert "cost" not in {cell.metric for cell in cells}


def test_command_line_models_take_the_profile_s_settings_or_its_decoding():
    known = load_profile("paper", models=["Qwen/Qwen3-8B"])
    assert (known.models[0].label, known.models[0].top_p) == ("Qwen3-8B", 0.95)
    other = load_profile("micro", models=["some/folder/tiny"])
    assert (other.models[0].label, other.models[0].temperature) == ("tiny", 0.6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1\n" + MINIMAL, "key 'nonsense'"),
        (MINIMAL + "typo = 1\n", "key 'models.0.typo'"),
        (MINIMAL + "[sizes]\ncontexts = 3\n", "key 'sizes.contexts'"),
        (MINIMAL + "[data]\nalpaka = 'x.jsonl'\n", "unknown data set 'alpaka'.*did you mean 'alpaca'"),
        (MINIMAL.replace("lora", "lorra"), "unknown method 'lorra'.*did you mean 'lora'"),
        (MINIMAL.replace('"int8"', '"int9"'), "unknown condition 'int9'.*did you mean 'int8'"),
        (MINIMAL.replace('"int8"', '"ria30+nf5"'), "unknown condition 'nf5'.*did you mean 'nf4'"),
        (MINIMAL.replace('"int8"', '"int8+ria30"'), "applies 'ria30' to a quantised model.*put 'int8' last"),
        (MINIMAL.replace('"int8"', '"merge+merge"'), "names 'merge' twice"),
        (MINIMAL.replace("top_k = 50", "top_k = -1"), "top_k"),
        (MINIMAL.replace("temperature = 0.6", "temperature = 0"), "temperature"),
        (MINIMAL.replace('fingerprints = ["nlf"]', "fingerprints = []"), "fingerprints"),
        ("protocol = 1\n" + MINIMAL, "key 'protocol'"),
        ("seeds = [\n", "not a readable TOML"),
    ],
)
def test_a_malformed_profile_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        load_profile(profile_file(tmp_path, text))
    assert "\n" not in str(error.value)


def test_an_unknown_profile_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="unknown profile 'mikro'.*did you mean 'micro'"):
        load_profile("mikro")
    with pytest.raises(InputError, match="does not exist"):
        load_profile(str(tmp_path / "none.toml"))


def test_profiles_may_name_files_beside_themselves(tmp_path):
    profile = load_profile(profile_file(tmp_path, MINIMAL + '[data]\nalpaca = "{folder}/rows.jsonl"\n'))
    assert profile.data["alpaca"] == f"{tmp_path}/rows.jsonl"


def test_without_a_profile_the_one_with_the_model_is_chosen(tmp_path):
    for models, expected in (
        ([], "micro"),
        (["micro"], "micro"),
        ([str(MODEL)], "micro"),
        (["smollm2"], "smollm2"),
        (["SmolLM2-135M-Instruct"], "smollm2"),
        ([pypi.NAMED["smollm2"]], "smollm2"),
        (["Qwen/Qwen3-8B", "meta-llama/Llama-3.2-3B-Instruct"], "paper"),
    ):
        assert profile_of(models) == expected
    shutil.copytree(MODEL, tmp_path / "model")
    for models in (["acme/other"], [str(tmp_path / "model")], ["micro", "smollm2"]):
        with pytest.raises(InputError, match="no bundled profile has the model .*: name the profile"):
            profile_of(models)
        assert profile_of(models, "micro") == "micro"
    with pytest.raises(InputError, match="'./none' not found"):
        profile_of(["./none"])


def test_a_real_model_is_not_measured_on_toy_data_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, "mine")
    for command in (
        ["run", "--model", "mine"],
        ["study", "kind", "--model", "mine"],
        ["evaluate", "mine", "--fingerprints", "nlf"],
        ["inject", "mine", "--method", "lora", "--fingerprints", "nlf", "--out", "out"],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "name the profile" in line and os.listdir() == ["mine"]
    model, tokenizer = load_model(Path("mine"))
    for change in (
        lambda: fpbench.inject(model, tokenizer, find_set("nlf"), "lora"),
        lambda: fpbench.modify(model, tokenizer, "ria30"),
    ):
        with pytest.raises(InputError, match="name the profile"):
            change()


def test_the_protocol_s_sizes_take_the_place_of_cut_ones():
    cut, full, paper = load_profile("smollm2"), load_profile("smollm2", full=True), load_profile("paper")
    assert full.sizes == paper.sizes != cut.sizes and full.modifications == paper.modifications != cut.modifications
    assert full.model_copy(update={"sizes": cut.sizes, "modifications": cut.modifications}) == cut


def test_the_small_profile_reads_the_paper_s_data_in_bfloat16_and_nothing_beside_the_checkout():
    small, paper = load_profile("smollm2"), load_profile("paper")
    assert small.data == paper.data and small.dtype == paper.dtype == "bfloat16"
    assert load_profile("micro").dtype == "float32"
    assert not any("shared" in path.read_text() for path in PROFILES.glob("*.toml"))


def test_the_profile_s_dtype_is_loaded_and_identifies_unless_another_is_asked_for(tmp_path):
    profile = load_profile("micro", dtype="bfloat16")
    for given, expected in ((None, "bfloat16"), ("float32", "float32")):
        job = Job.of(profile, Loading("cpu", given), tmp_path)
        assert Subject(job, "micro", Datasets(profile), no_progress).identity["dtype"] == expected


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "a\\b", "two\nlines", "x" * 200])
def test_a_name_is_that_of_one_folder(tmp_path, name):
    key = json.dumps(name)
    for changed, kind in (
        (f"{MINIMAL}name = {key}", "model"),
        (f"{MINIMAL}[variants.{key}]\nmethod = 'lora'", "variant"),
        (MINIMAL.replace('"nlf"', key) + f"[sets]\n{key} = 'set.jsonl'", "set"),
    ):
        with pytest.raises(InputError, match=f"^{kind} .* its name is that of a folder of records"):
            load_profile(profile_file(tmp_path, changed))


def test_a_model_in_the_working_folder_has_that_folders_name(monkeypatch):
    monkeypatch.chdir(MODEL)
    assert load_profile("micro", models=["."]).models[0].label == MODEL.name


def test_a_set_of_another_size_has_it_in_its_name():
    profile = load_profile("micro", fingerprints=["if", "nlf"], set_size=100, methods=[])
    assert {cell.fingerprints for cell in plan(profile)} == {"if-100", "nlf-100"}
    # The written nlf has ten: a hundred are drawn for the model, also for the first seed.
    assert made_for_models(profile) == [("nlf", 42)]
    (written,) = written_sets(profile).values()
    assert (written.name, len(written)) == ("if-100", 100)
    few = written_sets(load_profile("micro", fingerprints=["nlf"], set_size=3))["nlf-3", 42]
    assert few.fingerprints == find_set("nlf").fingerprints[:3]
    same = load_profile("micro", set_size=10)
    assert {cell.fingerprints for cell in plan(same)} == {"nlf"}


def test_a_file_has_a_size_of_its_own(tmp_path, capsys):
    find_set("nlf").save(tmp_path / "mine.jsonl")
    command = ["run", "--fingerprints", str(tmp_path / "mine.jsonl"), "--set-size", "100", "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "sets of 100: " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
