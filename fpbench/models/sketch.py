"""A short sketch of an update, by which two updates are compared without their weights: signed sums of ΔW."""

import base64
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SIZE = 128  # the cosine of two sketches is off by (1 - cos²)/√128 (one standard deviation): 0.0002 at 0.999
PIECE = 2**17 * SIZE  # numbers at once


def sketch(values: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> str:
    """Return the sketch of the change of some weights as text.

    Every entry of ΔW gets a sign by chance, the same for every update of a parameter of this name, and the entries
    are added up by their place modulo 128. Inner products survive that on average (the Johnson-Lindenstrauss lemma).
    """
    total = torch.zeros(SIZE, dtype=torch.float64)
    for name in sorted(values):
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        pieces = zip(values[name].flatten().split(PIECE), originals[name].flatten().split(PIECE), strict=True)
        for after, before in pieces:
            change = after.cpu().float() - before.cpu().float()  # (n,)
            signs = torch.randint(0, 2, change.shape, generator=generator, dtype=torch.int8)
            change = torch.where(signs.bool(), change, -change)
            change = torch.nn.functional.pad(change, (0, -len(change) % SIZE))
            total += change.view(-1, SIZE).sum(0, dtype=torch.float64)
    length = float(total.norm())
    unit = (total / length if length else total).numpy().astype("<f4")
    return base64.b64encode(unit.tobytes()).decode("ascii")
