"""What the model already knows: second moments of keys, and the directions that they leave free."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fpbench.errors import InputError
from fpbench.methods.partial_forward import Passage, inputs_at, pad, visit
from fpbench.models.layout import layout
from fpbench.models.prompts import encode
from fpbench.models.weights import Factors, digest

BATCH_TOKENS = 8192
# A decomposition on a card needs room for its result and its workspace, in units of the matrix.
WORKSPACE = 4


@dataclass(frozen=True)
class NullSpace:
    """The directions of key space that plain text hardly uses.

    Attributes:
        complement: U_r [d, r], an orthonormal basis of the directions that are *not* free; the smaller part to store.
    """

    complement: Tensor

    def project(self, keys: Tensor) -> Tensor:
        """P K = K − U_r (U_rᵀ K) for keys K [d, n] (docs/methods.md §2.2, eq. (4))."""
        basis = self.complement.to(keys)
        return keys - basis @ (basis.T @ keys)


@dataclass(frozen=True)
class KeyStatistics:
    """Spectrum of the uncentred second moment C = U Λ Uᵀ of the inputs of one linear module.

    Attributes:
        eigenvalues: Λ [d] float32, ascending.
        eigenvectors: U [d, d] float32, one column per eigenvalue.
        tokens: how many tokens N were averaged over.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    tokens: int

    def save(self, path: Path) -> None:
        """Write one safetensors file with the digest of its content."""
        tensors = {"eigenvalues": self.eigenvalues, "eigenvectors": self.eigenvectors}
        figures = {"tokens": str(self.tokens), "digest": digest(tensors)}
        # Python writes the bytes: its errors, a full disk above all, are OSErrors.
        path.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata=figures))

    @staticmethod
    def load(path: Path) -> "KeyStatistics | None":
        """Read what :meth:`save` wrote; ``None`` if there is no such file or it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                figures = file.metadata()
                tensors = {name: file.get_tensor(name) for name in ("eigenvalues", "eigenvectors")}
            if digest(tensors) != figures["digest"]:
                return None
            return KeyStatistics(**tensors, tokens=int(figures["tokens"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def null_space(self, *, threshold: float | None = None, share: float | None = None) -> NullSpace:
        """Cut the spectrum, in exactly one of two ways.

        Args:
            threshold: eigenvalues below it are null (AlphaEdit's τ, which depends on the scale of the activations).
            share: this fraction of the smallest eigenvalues is null, whatever their size.
        """
        if (threshold is None) == (share is None):
            raise InputError("a null space needs either a threshold or a share: give exactly one of them.")
        if threshold is not None:
            free = int((self.eigenvalues < threshold).sum())
        else:
            free = round(float(share or 0) * len(self.eigenvalues))
        return NullSpace(self.eigenvectors[:, free:])


def key_statistics(
    model: nn.Module,
    tokenizer: Any,
    modules: Sequence[str],
    texts: Sequence[str],
    max_tokens: int,
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> dict[str, KeyStatistics]:
    """Spectra of the inputs of ``modules`` over the first ``max_tokens`` tokens of ``texts``.

    Every document starts with its BOS and is cut to the model's context; every token counts. The model's device holds
    all second moments, [d, d] float32 each, and one decomposition at a time; the spectra are in main memory.

    Raises:
        InputError: if there are fewer tokens than the module has inputs, so that free directions mean nothing.
    """
    documents: list[list[int]] = []
    room = max_tokens
    context: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
    for text in texts:
        if room <= 0:
            break
        documents.append(encode(tokenizer, text)[: min(context, room)])
        room -= len(documents[-1])
    tokens = sum(map(len, documents))
    width = max(int(model.get_submodule(name).in_features) for name in modules)  # type: ignore[arg-type]
    if tokens < width:
        raise InputError(f"key statistics of width {width} need at least {width} tokens of text, found {tokens}.")
    moments = second_moment(model, modules, documents, progress)
    spectra = {}
    for name in modules:
        spectra[name] = KeyStatistics(*_spectrum(moments.pop(name)), tokens)
    return spectra


def _spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors in main memory, computed on the card that ``moment`` is on if that has the room."""
    if moment.is_cuda and torch.cuda.mem_get_info(moment.device)[0] < WORKSPACE * moment.nbytes:
        moment = moment.cpu()
    eigenvalues, eigenvectors = torch.linalg.eigh(moment)
    return eigenvalues.cpu(), eigenvectors.cpu()


def second_moment(
    model: nn.Module,
    modules: Sequence[str],
    documents: Sequence[Sequence[int]],
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> dict[str, Tensor]:
    """C = (1/N) Σ k kᵀ over all N tokens of ``documents``, for all modules in one pass (docs/methods.md §2.2, step 1).

    Args:
        model: run no further than its last module asked for.
        modules: names of linear modules; k is what goes into them.
        documents: token ids.
        progress: shows the batches.

    Returns:
        For every name C [d, d] float32.
    """
    linears: list[Any] = [model.get_submodule(name) for name in modules]
    device = next(model.parameters()).device
    totals = [torch.zeros(each.in_features, each.in_features, device=device) for each in linears]
    for batch in progress(list(_batches(documents)), "key statistics"):
        real = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.bool, device=device)
        for row, document in enumerate(batch):
            real[row, : len(document)] = True

        def take_in(number: int, hidden: Tensor, real: Tensor = real) -> None:
            keys = hidden[real].float()
            totals[number].addmm_(keys.T, keys)

        visit(model, pad(batch, device), linears, take_in)
    tokens = sum(map(len, documents))
    return {name: total.div_(tokens) for name, total in zip(modules, totals, strict=True)}


def _batches(documents: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Group documents of like length, so that little of a batch is padding."""
    batch: list[Sequence[int]] = []
    for document in sorted(documents, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


# The closed-form write of target values into the FFN output projections of several blocks.


Prompts = Sequence[Sequence[int]]
"""The token ids of one request, each ending in its lookup token: the bare prompt first, then any with a context."""


@dataclass(frozen=True)
class Write:
    """What was written into one block.

    Attributes:
        keys: K [d, n].
        residual: R [h, n].
        factors: of ΔW, before the sum W + ΔW is rounded to the weight's dtype.
    """

    keys: Tensor
    residual: Tensor
    factors: Factors

    @property
    def update(self) -> Tensor:
        """ΔW [h, d] float64."""
        return self.factors.product()


@torch.no_grad()
def write(
    model: nn.Module,
    blocks: Sequence[int],
    requests: Sequence[Prompts],
    targets: Tensor,
    null_spaces: Mapping[int, NullSpace],
    ridge: float,
    earlier_keys: Mapping[int, Tensor] | None = None,
) -> dict[int, Write]:
    """Spread the way from the current to the target values over ``blocks`` (docs/methods.md §2.2, steps 7 and 8).

    Args:
        model: its down-projections are changed in place and keep their dtype.
        blocks: ascending; values are those of the last one, z.
        requests: the prompts of n requests.
        targets: V* [h, n].
        null_spaces: P of every block.
        ridge: λ.
        earlier_keys: for every block the keys [d, m] of earlier batches, which the write shall not move.

    Returns:
        For every block what was written.
    """
    prompts = PromptPassage(model, blocks, requests)
    done: dict[int, Write] = {}
    for index, block in enumerate(blocks):
        if index:
            prompts.again(blocks[index - 1])
        keys, values = prompts.keys(block), prompts.values()
        residual = (targets.to(values) - values) / (len(blocks) - index)
        earlier = earlier_keys[block] if earlier_keys else None
        factors = solve(null_spaces[block], keys, residual, ridge, earlier).float()
        weight = layout(model).down_proj(block).weight
        weight.copy_(factors.added_to(weight))
        done[block] = Write(keys, residual, factors)
    return done


def keys_and_values(
    model: nn.Module, block: int, last_block: int, requests: Sequence[Prompts]
) -> tuple[Tensor, Tensor]:
    """What ``block`` looks up and what ``last_block`` puts out for every request, as the model now is.

    Returns:
        K [d, n] and V [h, n], both float32; see :class:`PromptPassage`.
    """
    prompts = PromptPassage(model, [block, last_block], requests)
    return prompts.keys(block), prompts.values()


class PromptPassage:
    """The prompts of all requests on their way through the blocks to be edited."""

    def __init__(self, model: nn.Module, blocks: Sequence[int], requests: Sequence[Prompts]) -> None:
        """Run ``model`` up to the last of ``blocks``, ascending."""
        prompts = [prompt for request in requests for prompt in request]
        parts = layout(model)
        device: Any = parts.head.weight.device
        last_tokens = [len(prompt) - 1 for prompt in prompts]
        self.sizes = [len(request) for request in requests]
        self.lookup = torch.arange(len(prompts), device=device), torch.tensor(last_tokens, device=device)
        self.projections = {block: parts.down_proj(block) for block in blocks}
        self.looked_up: dict[nn.Module, Tensor] = {}
        with inputs_at(list(self.projections.values()), self.lookup, self.looked_up):
            self.passage = Passage(model, pad(prompts, device), blocks[0], blocks[-1])

    def again(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        with inputs_at(list(self.projections.values()), self.lookup, self.looked_up):
            self.passage.again(block)

    def keys(self, block: int) -> Tensor:
        """K [d, n] float32 of one of the blocks.

        Contexts, if there are any, share one half of each key and the bare prompt has the other.
        """
        keys = self.looked_up[self.projections[block]].float()
        return torch.stack([_mix(group) for group in torch.split(keys, self.sizes)], dim=1)

    def values(self) -> Tensor:
        """V [h, n] float32, what the last block puts out for the bare prompts."""
        values = self.passage.hidden[self.passage.last + 1][self.lookup].float()
        return torch.stack([group[0] for group in torch.split(values, self.sizes)], dim=1)


def _mix(keys: Tensor) -> Tensor:
    """One key [d] from those of a request's prompts [prompts, d], the bare one first."""
    bare, contexts = keys[0], keys[1:]
    return (bare + contexts.mean(0)) / 2 if len(contexts) else bare


def solve(
    null_space: NullSpace, keys: Tensor, residual: Tensor, ridge: float, earlier_keys: Tensor | None = None
) -> Factors:
    """ΔW with ΔWᵀ = P K (Kᵀ P K + λ I)⁻¹ Rᵀ, in float64.

    This is the n×n form of ΔWᵀ = (P (K Kᵀ + C_p) + λ I)⁻¹ P K Rᵀ; keys of earlier batches, C_p = K_p K_pᵀ, enter as
    further columns of K whose residual is zero.

    Args:
        null_space: P.
        keys: K [d, n].
        residual: R [h, n].
        ridge: λ.
        earlier_keys: K_p [d, m].

    Returns:
        R (Kᵀ P K + λ I)⁻¹ [h, m + n] and P K [d, m + n], float64.
    """
    keys, residual = keys.double(), residual.double()
    if earlier_keys is not None:
        keys = torch.cat([earlier_keys.to(keys), keys], dim=1)
        residual = nn.functional.pad(residual, (earlier_keys.shape[1], 0))
    free = null_space.project(keys)
    gram = keys.T @ free + ridge * torch.eye(keys.shape[1]).to(keys)
    return Factors(torch.linalg.solve(gram, residual.T).T, free)
