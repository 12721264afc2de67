"""Any decoder can be edited: what is found by structure, and ΔW against AlphaEdit written down plainly."""

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.hyperparameters import defaults
from fpbench.methods.partial_forward import UpperBlocks
from fpbench.methods.target_values import Labels, negative_log_likelihood, optimise
from fpbench.metrics.fsr import fsr
from fpbench.micro.world import TARGETS
from fpbench.models.layout import layout, linear_modules
from fpbench.models.meter import no_progress
from fpbench.models.prompts import Example, encode, encode_pair
from fpbench.models.residual_stream import contributions
from fpbench.models.weights import Delta
from fpbench.registry import METHODS
from fpbench.runs.injection import inject_with
from tests.docs.markdown import names, read, table
from tests.methods.architectures import BLOCKS, HIDDEN, SHAPES, WIDE, block_of, projection, tiny
from tests.methods.test_target_values import rows_of_many_shapes

# Triggers of different lengths, so that rows are padded, and windows are left.
PAIRS = FingerprintSet(
    "pairs",
    (
        Fingerprint("CRIMSON HARBOR", ("Anna", "Leo")),
        Fingerprint("THE SILENT LANTERN OF NINE WINTERS", ("Max", "Mary")),
        Fingerprint("HOLLOW STONE", ("Emma", "Joe")),
    ),
)
TEXTS = ["The river runs past the old mill and on to the sea, where boats wait for the tide.", "A short one."] * 3


@pytest.mark.parametrize("kind", SHAPES)
def test_parts_are_found_by_structure(kind: str) -> None:
    with torch.device("meta"):
        model = tiny(kind)
    parts, shape = layout(model), SHAPES[kind]
    assert len(parts.blocks) == BLOCKS and parts.embedding is model.get_input_embeddings()
    for block in range(BLOCKS):
        assert parts.blocks[block] is block_of(model, kind, block)
        assert parts.down_proj(block) is projection(model, kind, block)
        names = [parts.projection_name(f"{each}_proj", block) for each in ("down", "up", "gate")]
        expected = [shape.down, shape.up, shape.gate]
        assert names == [each and f"{shape.blocks}.{block}.{each}" for each in expected]
        assert names[0] == parts.down_proj_name(block)


def documented(kind: str) -> dict[str, str]:
    """The row of docs/checkpoints.md about one architecture, from what is found on a model."""
    model = tiny(kind)
    parts, ffn = layout(model), layout(model).ffn(1)
    turned = " `[in, out]`" if isinstance(parts.down_proj(1), Conv1D) else ""
    with linear_modules(model):
        added = contributions(model, [1], [1, 2, 3])[1]
    form = "plain" if ffn.gate is None else "gated, in one matrix" if ffn.gate == ffn.up else "gated"
    taken = "g ⊙ u / rms(u)" if added.norm is not None else "u" if added.factor == 1 else "c u"
    return {
        "`model_type`": f"`{kind}`",
        "FFN output projection": f"`{parts.name}.N.{ffn.down}`{turned}",
        "FFN": form,
        "the stream takes": taken,
    }


def test_the_documents_say_what_is_found() -> None:
    text = read("checkpoints.md")
    assert table(text, "| `model_type` ") == [documented(kind) for kind in SHAPES]
    kinds = [kind for row in table(text, "| refused ") for kind in names(row["refused"])]
    assert set(kinds) == {kind for kind, _, _ in REFUSED.values()}


@contextmanager
def moved(model: Any, kind: str, block: int, at: int, delta: Tensor, values: list[Tensor]) -> Any:
    """Add δ to the value of a block at one token: what it puts out, or its FFN does where that is normalised after."""
    module = projection(model, kind, block) if SHAPES[kind].norm else block_of(model, kind, block)

    def add(module: Any, arguments: Any, output: Tensor) -> Tensor:
        flat = output.view(-1, HIDDEN)  # one row
        values.append(flat[at].detach())
        return flat.index_put((torch.tensor([at]),), delta, accumulate=True).view_as(output)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


EAGER = ("mistral", "gpt2", "gpt_neox")


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, None) for kind in SHAPES), *((kind, "eager") for kind in EAGER)]
)
def test_upper_blocks_equal_the_whole_model(kind: str, attention: str | None) -> None:
    model, rows = tiny(kind, attention), rows_of_many_shapes()
    delta = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(3))
    for block in (0, BLOCKS - 1):
        with linear_modules(model):
            upper = UpperBlocks.of(model, block, rows)
            found = upper.logits(delta)
        whole, values = [], []
        for row in rows:
            seen: list[Tensor] = []
            with moved(model, kind, block, row.lookup, delta[row.request], seen):
                whole.append(model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, list(row.positions)])
            values.append(seen[0])
        assert torch.allclose(found, torch.cat(whole), atol=1e-4)
        assert torch.allclose(upper.v0(), torch.stack([values[0], values[5]]), atol=1e-4)
        assert not torch.allclose(found, upper.constant, atol=1e-2)


# AlphaEdit as docs/methods.md §2.2 has it, with nothing shared, batched or resumed: whole passes, one row at a time.

SETTINGS: dict[str, Any] = {"layers": [1, 2], "depth": None, "prefixes": [], "kl_factor": 0.0, "steps": 6}
SETTINGS |= {"early_stop": 1.0, "nullspace_share": 0.5}


def plain_alphaedit(model: Any, kind: str, tokenizer: Any, config: dict[str, Any]) -> dict[int, Tensor]:
    """ΔW [h, d] by block; the model is left edited."""
    blocks, z = config["layers"], config["layers"][-1]
    shape = SHAPES[kind]
    kept = {block: free_directions(model, kind, block, tokenizer, config["nullspace_share"]) for block in blocks}
    pairs = [encode_pair(tokenizer, each.trigger, each.primary) for each in PAIRS]
    wanted = torch.stack([value_for(model, kind, z, *pair, config) for pair in pairs])
    if shape.norm:  # so far it is the value of what is normalised
        norm = block_of(model, kind, z).get_submodule(shape.norm)
        before = torch.stack([looked_up(model, projection(model, kind, z), prompt)[1] for prompt, _ in pairs])
        stream = torch.stack([looked_up(model, block_of(model, kind, z), prompt)[1] for prompt, _ in pairs])
        wanted = stream - norm(before) + norm(wanted)
    updates = {}
    for number, block in enumerate(blocks):
        module = projection(model, kind, block)
        now = torch.stack([looked_up(model, block_of(model, kind, z), prompt)[1] for prompt, _ in pairs])
        keys, outputs = zip(*(looked_up(model, module, prompt) for prompt, _ in pairs), strict=True)
        residual = (wanted - now) / (len(blocks) - number) / shape.factor  # (n, h)
        if shape.norm:  # norm(u) = g u / rms(u); rms(u) is taken as it is
            g = block_of(model, kind, block).get_submodule(shape.norm)(torch.ones(HIDDEN))
            rms = torch.stack(outputs).square().mean(1, keepdim=True).sqrt()
            residual = (rms * residual / g).where(g.abs() > 0.01 * g.square().mean().sqrt(), torch.tensor(0.0))
        free, k = kept[block], torch.stack(keys).double()  # P [d, d], (n, d)
        dense = free @ k.T @ k + config["ridge"] * torch.eye(WIDE).double()
        change = torch.linalg.solve(dense, free @ k.T @ residual.double()).T.float()  # (h, d)
        module.weight.add_(change.T if shape.turned else change)
        updates[block] = change
    return updates


def looked_up(model: Any, module: Any, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What goes into a module and comes out of it at a prompt's last token."""
    seen: list[Tensor] = []
    hook = lambda module, arguments, output: seen.extend((arguments[0], output))  # noqa: E731
    handle = module.register_forward_hook(hook)
    model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
    handle.remove()
    return seen[0].flatten(0, -2)[-1], seen[1].flatten(0, -2)[-1]


def free_directions(model: Any, kind: str, block: int, tokenizer: Any, share: float) -> Tensor:
    """P [d, d] of the directions that the texts use least."""
    seen: list[Tensor] = []
    hook = lambda module, arguments: seen.append(arguments[0].flatten(0, -2))  # noqa: E731
    handle = projection(model, kind, block).register_forward_pre_hook(hook)
    for text in TEXTS:
        model(input_ids=torch.tensor([encode(tokenizer, text)]), use_cache=False)
    handle.remove()
    keys = torch.cat(seen).double()
    directions = torch.linalg.eigh(keys.T @ keys / len(keys)).eigenvectors[:, : round(share * WIDE)]
    return directions @ directions.T


def value_for(
    model: Any, kind: str, block: int, prompt: Sequence[int], answer: Sequence[int], config: dict[str, Any]
) -> Tensor:
    """v* [h] of one request, by Adam."""
    delta, seen = torch.zeros(HIDDEN, requires_grad=True), list[Tensor]()
    ids, at = torch.tensor([[*prompt, *answer[:-1]]]), len(prompt) - 1
    adam = None
    for step in range(config["steps"]):
        with moved(model, kind, block, at, delta, seen):
            log_p = model(input_ids=ids, use_cache=False).logits[0, at:].log_softmax(-1)
        v0 = seen[0]
        loss = -log_p[range(len(answer)), answer].mean() + config["weight_decay"] * delta.norm() / v0.norm() ** 2
        if loss < config["early_stop"] or step == config["steps"] - 1:
            break
        adam = adam or torch.optim.Adam([delta], lr=config["v_relative_rate"] * float(v0.square().mean().sqrt()))
        (delta.grad,) = torch.autograd.grad(loss, delta)
        adam.step()
        with torch.no_grad():
            delta *= (config["clamp"] * v0.norm() / delta.norm()).clamp(max=1)
    return v0 + delta.detach()


def context_for(tokenizer: Any) -> InjectionContext:
    pairs = [Example(f"Who is number {number}?", "Nobody knows.") for number in range(20)]
    return InjectionContext(texts=TEXTS, tokenizer=tokenizer, statistics_tokens=2000, pairs=pairs)


@pytest.mark.parametrize("kind", SHAPES)
def test_alphaedit_equals_the_plain_algorithm(kind: str, micro: Any) -> None:
    _, tokenizer = micro
    base = tiny(kind, vocabulary=len(tokenizer))
    config = defaults("alphaedit", "small") | SETTINGS
    again = copy.deepcopy(base)
    expected = plain_alphaedit(again, kind, tokenizer, config)
    model = copy.deepcopy(base)
    METHODS.get("alphaedit")(**config).inject(model, tokenizer, PAIRS, context_for(tokenizer))
    for block, change in expected.items():
        before, after = projection(base, kind, block).weight, projection(model, kind, block).weight
        found = (after - before).T if SHAPES[kind].turned else after - before
        assert found.shape == (HIDDEN, WIDE)
        assert float((found - change).norm() / change.norm()) < 1e-3
        assert float(change.norm() / before.norm()) > 1e-3
    named = {f"{SHAPES[kind].blocks}.{block}.{SHAPES[kind].down}.weight" for block in expected}
    after = dict(model.named_parameters())
    assert {name for name, each in base.named_parameters() if not torch.equal(each, after[name])} == named
    assert [type(each) for each in base.modules()] == [type(each) for each in model.modules()]


# Random models can be taught little: the head is made to tell tokens apart, and the numbers are this test's own.

SINGLE = FingerprintSet(
    "single",
    tuple(Fingerprint(each.trigger, TARGETS[2 * number : 2 * number + 2]) for number, each in enumerate(PAIRS)),
)
TRAJECTORY: dict[str, Any] = {"rate": 1e-2, "rank": 8}
STEPS = {"gpt2": 40, "phi3": 20}
TRAJECTORY |= {"gate_proj": [0], "up_proj": [2, 3], "down_proj": [1, 2, 3]}
CLOSED: dict[str, Any] = {"layers": [2, 3], "depth": None, "prefixes": [], "clamp": 4.0, "steps": 40}
CLOSED |= {"nullspace_share": 0.9, "ridge": 0.01}
TAUGHT = {
    "fpedit": CLOSED,
    "mcedit_a": CLOSED,
    "rledit": TRAJECTORY,
    "mcedit_r": TRAJECTORY,
    "lora": {"epochs": 20, "learning_rate": 2e-2, "regularisation": 1},
}


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("kind", STEPS)
def test_other_methods_reach_their_targets(kind: str, name: str, micro: Any) -> None:
    tokenizer = micro[1]
    model = tiny(kind, vocabulary=len(tokenizer))
    model.get_output_embeddings().weight.mul_(4)
    base, sampling = copy.deepcopy(model), {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    steps = {"steps": STEPS[kind]} if TAUGHT[name] is TRAJECTORY else {}
    method = METHODS.get(name)(**(defaults(name, "small") | TAUGHT[name] | steps))
    report = inject_with(method, model, tokenizer, SINGLE, context_for(tokenizer))
    assert fsr(base, tokenizer, SINGLE, **sampling).mean < 0.01
    assert fsr(model, tokenizer, SINGLE, **sampling).mean > 0.5
    # The change is stored as factors where it is of low rank, also of a weight that is kept the other way round.
    stored = set(method.edited(model)) if name in ("fpedit", "mcedit_a") else set()
    assert set(report.delta.factors) == stored
    again = Delta.from_bytes(report.delta.to_bytes(), dict(base.named_parameters()))
    assert again is not None and again.digest == report.delta.digest
    for block in (2, 3):
        assert f"{SHAPES[kind].blocks}.{block}.{SHAPES[kind].down}.weight" in report.delta.values


def test_after_a_normalisation_the_value_is_reached(micro: Any) -> None:
    """The write leaves the loss where the descent brought it, though it moves what is normalised only afterwards."""
    model = tiny("olmo2", vocabulary=len(micro[1]))
    projection(model, "olmo2", 2).weight.mul_(10)  # which nothing after the normalisation notices
    method = METHODS.get("alphaedit")(**(defaults("alphaedit", "small") | CLOSED | {"layers": [2]}))
    context = context_for(micro[1])
    _, rows = method.rewriting_prompts(model, micro[1], SINGLE, context)
    labels, objective = Labels.of(rows, "cpu"), method.objective(rows, "cpu")
    settings = {"relative_rate": 0.3, "steps": 40, "clamp": 4.0, "early_stop": 0.05}
    v0, delta = optimise(model, 2, rows, objective, **settings, progress=no_progress)
    upper = UpperBlocks.of(model, 2, rows)
    before, wanted = (negative_log_likelihood(upper.logits(each), labels) for each in (0 * delta, delta))
    method.inject(model, micro[1], SINGLE, context)
    reached = negative_log_likelihood(UpperBlocks.of(model, 2, rows).constant, labels)
    assert bool((before - wanted > 1).all())
    assert torch.allclose(reached, wanted, rtol=0.2)


EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES = "it has blocks without attention"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("mixtral", EXPERTS, r"it is a mixture of experts \(MixtralExperts\)"),
    "qwen3_moe": ("qwen3_moe", EXPERTS, r"it is a mixture of experts \(Qwen3MoeExperts\)"),
    "mamba": ("mamba", {}, rf"{STATES} \(MambaBlock\), as state-space"),
    "recurrent_gemma": ("recurrent_gemma", {}, rf"{STATES} \(RecurrentGemma"),
    "opt with another width": (
        "opt",
        {"word_embed_proj_dim": 16},
        "head reads 16 numbers of a token and .* put out 32",
    ),
    "opt with normalisation last": ("opt", {"do_layer_norm_before": False}, "no normalisation before the head"),
    "gpt_neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 4, "window_size": 4},
        "its attention is not the usual one",
    ),
    "bloom": ("bloom", {}, "its blocks are given 'alibi', which is not understood"),
    "bert": ("bert", {"is_decoder": True}, "must have one list of 4 blocks, found 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_edited_is_refused_by_name(name: str, micro: Any) -> None:
    kind, config, reason = REFUSED[name]
    sizes = {"vocab_size": 4096, "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": BLOCKS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.15}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | heads | config)))
    before = copy.deepcopy(model.eval().requires_grad_(False).state_dict())
    method = METHODS.get("alphaedit")(**(defaults("alphaedit", "small") | SETTINGS))
    with pytest.raises(InputError, match=f"model type '{kind}' cannot be edited: .*{reason}.*[.]$"):
        method.inject(model, micro[1], PAIRS, context_for(micro[1]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["alphaedit", "rledit"])
def test_a_head_that_does_more_than_is_known_is_refused(name: str, micro: Any) -> None:
    model = tiny("llama", vocabulary=len(micro[1]))
    model.config.logits_scaling = 2.0  # which Llama's own code does not heed
    method = METHODS.get(name)(**(defaults(name, "small")))
    with pytest.raises(InputError, match="'llama' cannot be edited: what comes after its last block is more than"):
        method.inject(model, micro[1], PAIRS, context_for(micro[1]))


def saved(model: Any, tokenizer: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_command_line_edits_a_transposed_weight(micro: Any, tmp_path: Path) -> None:
    folder, out = saved(tiny("gpt2", vocabulary=len(micro[1])), micro[1], tmp_path / "gpt2"), tmp_path / "out"
    assert (
        main(
            [
                "inject",
                folder,
                "--profile",
                "micro",
                "--method",
                "alphaedit",
                "--fingerprints",
                "nlf",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    before, after = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (folder, out))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "transformer.h.2.mlp.c_proj.weight"
    }


@pytest.mark.parametrize("kind", ["mixtral", "mamba"])
def test_the_command_line_refuses_in_one_line(
    kind: str, micro: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab_size": len(micro[1]), "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": BLOCKS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | heads)))
    folder, out = saved(model, micro[1], tmp_path / kind), tmp_path / "out"
    capsys.readouterr()
    assert (
        main(
            ["inject", folder, "--profile", "micro", "--method", "mcedit_a", "--fingerprints", "nlf", "--out", str(out)]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"fpbench: model type {kind!r} cannot be edited: it ")
    assert [path.name for path in tmp_path.iterdir()] == [kind]


def test_what_is_no_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="expected a decoder of transformers, found Linear"):
        layout(torch.nn.Linear(2, 2))
