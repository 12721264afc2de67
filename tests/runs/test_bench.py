"""One load per model: what an adapter leaves behind does not reach the next checkpoint."""

import torch
from safetensors.torch import load

import fpbench
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.records.record import cell_id
from fpbench.records.store import read_records
from fpbench.runs.identity import cell_identity
from fpbench.runs.plan import Job, checkpoints, plan
from fpbench.runs.profile import load_profile
from fpbench.runs.worker import Worker


class Careless(fpbench.FingerprintMethod):
    """Turns a buffer, which is no parameter, and so is not put back."""

    version = "1"

    def inject(self, model, tokenizer, fingerprints, context):
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
        model.model.rotary_emb.inv_freq.mul_(2)


class Raising(fpbench.FingerprintMethod):
    version = "1"

    def inject(self, model, tokenizer, fingerprints, context):
        model.model.layers[0].mlp.down_proj.weight.zero_()
        raise ZeroDivisionError("half a character \ud800")


def worker_of(tiny_profile, out, methods):
    profile = load_profile(tiny_profile, methods=methods, conditions=["origin"])
    return Worker(Job(profile, {"micro": MODEL}, Loading("cpu"), out), no_progress), checkpoints(plan(profile))


def measure(worker, cells):
    bench, fingerprints = worker.bench(cells)
    _, work = bench.measure(cells, fingerprints)
    return list(work)


def test_a_model_that_was_not_restored_is_loaded_anew_and_said_so(tiny_profile, tmp_path, caplog, registered):
    worker, (base, injected) = worker_of(tiny_profile, tmp_path, [registered(Careless)])
    measure(worker, base)
    model = worker.subject("micro").model
    measure(worker, injected[:1])
    assert "not restored bit for bit" in caplog.text
    again = worker.subject("micro").model
    assert again is not model
    assert not torch.equal(model.model.rotary_emb.inv_freq, again.model.rotary_emb.inv_freq)


def test_an_adapter_that_raises_costs_its_own_cells_alone(tiny_profile, tmp_path, caplog, registered):
    worker, (_, injected) = worker_of(tiny_profile, tmp_path, [registered(Raising)])
    measure(worker, injected)
    records = read_records(tmp_path / "records")
    assert len(records) == len(injected)
    for record in records:
        assert record.status == "failed" and record.reason == "ZeroDivisionError: half a character \\ud800"
        assert "in inject" in record.traceback
    assert "restored" not in caplog.text, "the weights it had zeroed were put back"


def test_a_damaged_delta_is_reported_and_injected_again(tiny_profile, tmp_path, caplog):
    worker, (_, injected) = worker_of(tiny_profile, tmp_path, ["mcedit_a"])
    measure(worker, injected[:1])
    (delta,) = (tmp_path / "deltas").glob("*.safetensors")
    content = delta.read_bytes()
    delta.write_bytes(content[:-8] + bytes(8))
    measure(worker, injected[1:2])
    assert f"the stored delta {delta.name} is damaged: it is injected again" in caplog.text
    before, after = load(content), load(delta.read_bytes())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert delta.with_name(f"{delta.name}.damaged").read_bytes() == content[:-8] + bytes(8)


def test_a_delta_that_is_a_folder_is_injected_again(tiny_profile, tmp_path, caplog):
    worker, (_, injected) = worker_of(tiny_profile, tmp_path, ["mcedit_a"])
    measure(worker, injected[:1])
    (delta,) = (tmp_path / "deltas").glob("*.safetensors")
    delta.unlink()
    delta.mkdir()
    delta.with_suffix(".json").unlink()
    delta.with_suffix(".json").mkdir()
    measure(worker, injected[1:2])
    assert delta.is_file() and delta.with_suffix(".json").is_file()
    assert sum(path.name.endswith(".damaged") for path in delta.parent.iterdir()) == 2


def test_a_model_stays_loaded_from_checkpoint_to_checkpoint(tiny_profile, tmp_path, caplog):
    worker, (base, injected) = worker_of(tiny_profile, tmp_path, ["mcedit_a"])
    measure(worker, base[:1])
    model = worker.subject("micro").model
    measure(worker, injected[:2])
    assert worker.subject("micro").model is model
    assert "restored" not in caplog.text


def test_what_a_measurement_is_called_needs_no_weights(small_run, small_profile, tmp_path, monkeypatch):
    """The names are those of the finished run, though nothing here was loaded."""

    def refuse(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Loading, "load", refuse)
    profile = load_profile(small_profile)
    worker = Worker(Job(profile, {"micro": MODEL}, Loading("cpu"), tmp_path), no_progress)
    subject, sets = worker.subject("micro"), worker.written
    names = {cell.path: cell_id(cell_identity(subject, cell, sets["nlf", 42])) for cell in plan(profile)}
    found = {record.cell.path: record.id for record in read_records(small_run / "records")}
    assert names == found
