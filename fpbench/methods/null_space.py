"""Null spaces: the directions of key space that plain text hardly uses, from the second moment of keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fpbench.errors import InputError
from fpbench.methods.partial_forward import pad, visit
from fpbench.models.layout import context_length, inputs
from fpbench.models.meter import Progress
from fpbench.models.prompts import encode
from fpbench.models.weights import digest

TEXT = ("tokens", "documents", "windows")  # how much text was read
VERSION = "2"  # of how key statistics are taken: part of what names stored ones
BATCH_TOKENS = 8192
# Longest stretch of text that is read at once: attention to a document of 8,192 tokens costs three times what all else
# does, and few articles are longer than this.
WINDOW = 512
# Rows of a second moment that are summed up by one product, which stops at the diagonal.
PANEL = 384
# A decomposition on a card needs room for its result and its workspace, in units of the matrix.
WORKSPACE = 4


@dataclass(frozen=True)
class NullSpace:
    """The directions of key space that plain text hardly uses."""

    # U_r [d, r], an orthonormal basis of the directions that are *not* free; the smaller part to store
    complement: Tensor

    def project(self, keys: Tensor) -> Tensor:
        """Return P K = K − U_r (U_rᵀ K) for keys K [d, n] (docs/methods.md §2.2, eq. (4))."""
        basis = self.complement.to(keys)
        return keys - basis @ (basis.T @ keys)


@dataclass(frozen=True)
class KeyStatistics:
    """Spectrum of the uncentred second moment C = U Λ Uᵀ of the inputs of one linear module."""

    eigenvalues: Tensor  # Λ [d] float32, ascending
    eigenvectors: Tensor  # U [d, d] float32, one column per eigenvalue
    tokens: int  # how many tokens N were averaged over
    documents: int  # that they are of, the last one perhaps in part
    windows: int  # that these were read in

    def save(self, path: Path) -> None:
        """Write one safetensors file with the digest of its content."""
        tensors = {"eigenvalues": self.eigenvalues, "eigenvectors": self.eigenvectors}
        text = {name: str(getattr(self, name)) for name in TEXT}
        figures = text | {"digest": digest(tensors)}
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
            tokens, documents, windows = (int(figures[name]) for name in TEXT)
            return KeyStatistics(tensors["eigenvalues"], tensors["eigenvectors"], tokens, documents, windows)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def null_space(self, *, threshold: float | None = None, share: float | None = None) -> NullSpace:
        """Return the null space of the spectrum, cut in exactly one of two ways (docs/methods.md §2.2, step 2).

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
    model: nn.Module, tokenizer: Any, modules: Sequence[str], texts: Sequence[str], max_tokens: int, progress: Progress
) -> dict[str, KeyStatistics]:
    """Return the spectra of the inputs of ``modules`` over the first ``max_tokens`` tokens of ``texts``.

    Documents are read in windows of at most :data:`WINDOW` tokens, or of the model's context, if that is shorter; each
    window starts with the tokenizer's BOS, and every token counts. The model's device holds all second moments, [d, d]
    float32 each, and one decomposition at a time; the spectra are in main memory.

    Raises:
        InputError: if there are fewer tokens than the module has inputs, so that free directions mean nothing.
    """
    width = min(WINDOW, context_length(model) or WINDOW)
    windows: list[list[int]] = []
    room = max_tokens
    documents = 0
    read = ((number, each) for number, text in enumerate(texts, 1) for each in text_windows(tokenizer, text, width))
    for number, window in read:
        if room <= 0:
            break
        windows.append(window[:room])
        room -= len(windows[-1])
        documents = number
    tokens = sum(map(len, windows))
    width = max(inputs(model.get_submodule(name)) for name in modules)
    if tokens < width:
        raise InputError(f"key statistics of width {width} need at least {width} tokens of text, found {tokens}.")
    moments = second_moment(model, modules, windows, progress)
    # Each moment goes as soon as it is decomposed.
    return {name: KeyStatistics(*_spectrum(moments.pop(name)), tokens, documents, len(windows)) for name in modules}


def text_windows(tokenizer: Any, text: str, width: int) -> Iterator[list[int]]:
    """Yield the tokens of ``text`` in windows of at most ``width``, each after the tokenizer's BOS where it has one."""
    ids = encode(tokenizer, text)
    start = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
    rest, room = ids[len(start) :], width - len(start)
    for first in range(0, len(rest), room):
        yield [*start, *rest[first : first + room]]


def _spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors in main memory, computed on the card of ``moment`` if that has the room."""
    if moment.is_cuda and torch.cuda.mem_get_info(moment.device)[0] < WORKSPACE * moment.nbytes:
        moment = moment.cpu()
    eigenvalues, eigenvectors = torch.linalg.eigh(moment)
    return eigenvalues.cpu(), eigenvectors.cpu()


def second_moment(
    model: nn.Module, modules: Sequence[str], documents: Sequence[Sequence[int]], progress: Progress
) -> dict[str, Tensor]:
    """Return C = (1/N) Σ k kᵀ, [d, d] float32, of every linear module named (docs/methods.md §2.2, step 1).

    The keys k are its inputs at the N tokens of ``documents``, read in one pass that ends at the last of the modules.
    The model runs in its own precision; products are taken and added up in float32, up to the diagonal alone.
    """
    linears = [model.get_submodule(name) for name in modules]
    device = next(model.parameters()).device
    totals = [torch.zeros(inputs(each), inputs(each), device=device) for each in linears]
    for batch in progress(list(_batches(documents)), "key statistics"):
        real = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.bool, device=device)
        for row, document in enumerate(batch):
            real[row, : len(document)] = True

        def take_in(number: int, hidden: Tensor, real: Tensor = real) -> None:
            keys = hidden[real].float()  # (real tokens, d)
            for start in range(0, keys.shape[1], PANEL):
                panel = slice(start, start + PANEL)
                totals[number][panel, : panel.stop].addmm_(keys[:, panel].T, keys[:, : panel.stop])

        visit(model, pad(batch, device), linears, take_in)
    tokens = sum(map(len, documents))
    return {name: _mirrored(total.div_(tokens)) for name, total in zip(modules, totals, strict=True)}


def _mirrored(moment: Tensor) -> Tensor:
    """Copy what is below the diagonal [d, d] to above it, in place."""
    for start in range(0, len(moment), PANEL):
        panel = slice(start, start + PANEL)
        moment[: panel.start, panel] = moment[panel, : panel.start].T
    return moment


def _batches(documents: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Yield documents in groups of like length, so that little of a batch is padding."""
    batch: list[Sequence[int]] = []
    for document in sorted(documents, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch
