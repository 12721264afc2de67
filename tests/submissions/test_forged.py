"""Forged results do not change a score: whatever an adapter does in its process, its weights alone are scored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import find_set
from fpbench.methods.base import Base, InjectionContext
from fpbench.metrics.fsr import fsr
from fpbench.micro import MODEL
from fpbench.models.loading import Loading, load_model
from fpbench.registry import METHODS
from fpbench.runs.api import measure
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import load_profile
from fpbench.submissions.discovery import register_submissions
from fpbench.submissions.process import ChildProcess, Limits
from fpbench.submissions.replies import read_changes
from tests.conftest import require, require_confinement
from tests.runs.grids import write_tiny
from tests.submissions.hostile import DAEMON, NAME, WEAK, write

MATRIX = "model.layers.5.mlp.down_proj.weight"
DECODING = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require(MODEL)
    require_confinement()
    monkeypatch.chdir(tmp_path)
    register_submissions()
    return tmp_path


def injected(top: str = "", body: str = WEAK) -> tuple[torch.nn.Module, InjectionContext]:
    """The micro model after a submission's injection, by the harness's own way."""
    from fpbench.runs.injection import create_method, inject_with

    write(Path("submissions") / NAME, top, body)
    model, tokenizer = load_model(MODEL, dtype="float32")
    context = InjectionContext(tokenizer=tokenizer, base=Base(MODEL, Loading("cpu", "float32"), "raw"))
    inject_with(create_method(NAME, model, {}), model, tokenizer, find_set("nlf"), context)
    return model, context


FORGED = """\
print('FSR 1.0', flush=True)
import fpbench.metrics.fsr as metric
metric.fsr = lambda *a, **k: type('Result', (), {'mean': 1.0})()
fpbench.fsr = metric.fsr
"""
OVERRIDING = f"""\
{WEAK}
import types
model.generate = types.MethodType(lambda self, ids, **k: ids, model)
model.generation_config.top_k = 1"""


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, InjectionContext]:
    """The micro model after an adapter that prints a score and patches the metric in its own process."""
    require(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("forged"))
        register_submissions()  # set up before the fixture of each test
        return injected(FORGED)


def test_what_comes_back_is_what_the_adapter_changed(forged) -> None:
    model, context = forged
    base = dict(load_model(MODEL, dtype="float32")[0].named_parameters())
    for name, value in model.named_parameters():
        expected = base[name] * 1.001 if name == MATRIX else base[name]
        assert torch.equal(value, expected), name
    assert context.peak_memory > 100 * 2**20
    assert context.seconds["total"] > 0 and context.seconds["loading"] > 0


def test_a_score_is_that_of_the_weights(forged, micro) -> None:
    assert fsr(forged[0], micro[1], find_set("nlf"), **DECODING).mean < 0.01


def test_an_overridden_model_is_refused() -> None:
    with pytest.raises(CellError, match="the adapter changed the configuration of the model .generation: top_k."):
        injected(body=OVERRIDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "changed no weight"),
        ("with torch.no_grad(): weight[0, 0] = float('nan')", "non-finite weights in " + MATRIX),
        ("with torch.no_grad(): weight.mul_(2)\nweight.requires_grad_(True)\nreturn model.double()", "torch.float64"),
        (f"{WEAK}\nmodel.lm_head.register_forward_hook(lambda m, a, o: 9 * o)", r"changed the modules of the model"),
        (f"{WEAK}\ntokenizer.add_tokens(['zzz'])", r"changed the tokenizer of the model"),
    ],
)
def test_useless_weights_are_no_result(body: str, said: str) -> None:
    with pytest.raises(CellError, match=said):
        injected(body=body)


def test_written_records_are_nobodys(here: Path) -> None:
    """It writes a record where the run looks for one, at every place that it can think of."""
    forged = here / "out" / "records" / "micro" / "nlf" / NAME / "seed-42" / "origin" / "fsr.json"
    body = f"""\
import pathlib
for place in ({str(forged)!r}, 'records/fsr.json', os.path.join(os.path.dirname(__file__), 'records', 'fsr.json')):
    try:
        pathlib.Path(place).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(place).write_text('{{"status": "done", "result": {{"mean": 1.0}}}}')
    except OSError as error:
        print(error)
{WEAK}"""
    write(here / "submissions" / NAME, body=body)
    profile = load_profile(str(write_tiny(here / "tiny.toml", ("origin",))), methods=[NAME])
    rows = measure(Job.of(profile, Loading("cpu", "float32"), here / "out"), plan(profile))
    (row,) = [row for row in rows if row.method == NAME]
    assert row.conditions["origin"].fsr < 0.01 and not row.failed
    assert json.loads(forged.read_text())["result"]["mean"] < 0.01
    assert row.cost.fraction > 0 and row.trust == "re-run"
    assert not (here / "submissions" / NAME / "records").exists()


def test_a_loaded_model_has_no_folder_to_start_from(micro) -> None:
    from fpbench.runs.injection import create_method

    write(Path("submissions") / NAME)
    method = create_method(NAME, micro[0], {})
    with pytest.raises(InputError, match="is a submission, which runs in a process of its own"):
        method.inject(micro[0], micro[1], find_set("nlf"), InjectionContext())
    assert NAME in METHODS.names()


def test_nothing_of_the_user_reaches_the_child(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Its environment is bare, its home is its own, and nothing is left of it."""
    from fpbench.submissions.folder import find

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("https_proxy", "http://user:password@proxy")
    write(here / "submissions" / NAME, top="raise KeyError(sorted(os.environ) + [os.getcwd(), os.environ['HOME']])")
    with ChildProcess(find(NAME), Limits(60, 2**32, 2**26, 2**27)) as child:
        with pytest.raises(CellError) as raised:
            child.ask("describe", name=NAME, configs={})
        folder = child.folder
        said = str(raised.value)
    assert "HF_TOKEN" not in said and "proxy" not in said and "HOME" in said
    assert said.count("'/tmp'") == 2
    assert not folder.exists()


@pytest.mark.slow
def test_everything_counts_from_the_import_on() -> None:
    """Also memory of a process that left its parent and its session."""
    hoard = "if daemon():\n    x = b'1' * (700 * 2**20); time.sleep(600)\ntime.sleep(2)"
    _, context = injected(top=f"import time\n{DAEMON}\n{hoard}")
    assert context.seconds["total"] > 2
    assert context.peak_memory > 900 * 2**20


def test_a_name_of_a_million_characters_is_cut() -> None:
    content = save({"x" * 10**6: torch.ones(2)})
    with pytest.raises(CellError, match="handed back x{100}…, which the base does not have"):
        read_changes(content, {})
