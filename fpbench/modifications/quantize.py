"""Quantisation of the resident model with bitsandbytes: LLM.int8() and NF4 (protocol §4).

Every linear module but the output head is replaced by the quantised layer that is built from its weight in memory:
the same layers, bit for bit, that ``from_pretrained`` makes with a ``BitsAndBytesConfig``. Embeddings, normalisations
and the head, tied or not, stay as they are. A layer that was replaced gives its weight back at once, whoever still
holds it: a card has no room for both (:func:`fpbench.models.weights.preserved` brings it back).
"""

from __future__ import annotations

import collections
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fpbench.errors import CellError
from fpbench.models.quiet import quiet
from fpbench.modifications.base import Modification, ModificationContext, Modified, require_effect
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work

# Activations of this magnitude are multiplied in the model's precision (Dettmers et al., 2022, §3.2).
OUTLIER_THRESHOLD = 6.0
# The 4-bit layout for processors with AVX-512 BF16 interleaves so many rows and holds whole blocks of so many columns.
CPU_ROWS, CPU_COLUMNS = 32, 64
BYTES = 12  # of each weight of the layer that is being quantised


class Quantization(Modification):
    """Replaces linear layers by quantised ones."""

    leaves = "a quantised model, which can be neither trained, pruned nor merged"
    drift = True
    # It computes with weights that it restores in every pass; as measured on a CPU, where it is slowest.
    slowdown = 3.0
    family = "quantised"
    figures = {"bits_per_weight": lambda value: f"{value:.2f} bits per weight", **Modification.figures}

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Replace the layers in place."""
        import torch

        library = _bitsandbytes()
        head = model.get_output_embeddings()  # type: ignore[operator]
        layers = [(name, m) for name, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head]
        if not layers:
            raise CellError(f"{self.name} found no plain linear layer to quantise besides the output head.")
        for name, layer in layers:
            self.check(library, name, layer)
        parameters = (parameter for module in model.modules() for parameter in module._parameters.values())
        holders = collections.Counter(map(id, parameters))
        stored = entries = 0
        error = reference = 0.0
        for name, layer in context.progress(layers, self.name):
            with torch.no_grad():
                replacement, restored, size = self.quantize(library, layer)
                error += (restored.float() - layer.weight.float()).square().sum().item()
                reference += layer.weight.float().square().sum().item()
            stored, entries = stored + size, entries + layer.weight.numel()
            replacement.bias = layer.bias
            model.set_submodule(name, replacement.train(layer.training).requires_grad_(False))
            if holders[id(layer.weight)] == 1:
                layer.weight.data = layer.weight.new_empty(0)
        change = (error / reference) ** 0.5 if reference else 0.0
        require_effect(self.name, change)
        proof = {"layers": len(layers), "bits_per_weight": 8 * stored / entries, "relative_change": change}
        return Modified(model, proof)

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count reading, rounding, restoring and comparing every weight."""
        from fpbench.models.costs import Work

        return Work(handled=4 * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count codes beside the layer they replace, which gives its weight back at once, and float32 of both."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, Room(BYTES * max(each.weight.numel() for each in shape.linears)))

    def check(self, library: Any, name: str, layer: nn.Linear) -> None:
        """Refuse a layer that the library cannot compute with.

        Raises:
            CellError: naming the layer and why.
        """

    @abstractmethod
    def quantize(self, library: Any, layer: nn.Linear) -> tuple[nn.Module, Tensor, int]:
        """Build the quantised layer, without its bias.

        Returns:
            The layer, its weight dequantised [out, in], and the bytes that it stores for it, scales included.
        """


@MODIFICATIONS.register("int8")
class Int8(Quantization):
    """LLM.int8(): 8-bit integers with one scale per row, products of 8-bit weights and 8-bit activations.

    Weights and activations pass through float16 before they are rounded, whatever the model's dtype. The activations of
    each token get a scale of their own; input columns with an outlier (magnitude 6 or more) *in any row of the batch*
    are left out of the integer product and multiplied with the dequantised weight in the model's dtype, so a result
    depends a little on what else is in the batch. A float32 model on a CPU goes through all of this as well: only the
    sums and the scaling are float32, and the integer product is exact with AVX-512, or up to 1,040 inputs without.
    """

    heading = "INT8"

    def quantize(self, library: Any, layer: nn.Linear) -> tuple[nn.Module, Tensor, int]:
        """Build the layer with W_ij ≈ c_ij s_i / 127, s_i the greatest magnitude of row i."""
        import torch

        codes, scales, _ = library.functional.int8_vectorwise_quant(layer.weight.detach().to(torch.float16))
        size = layer.in_features, layer.out_features
        quantized: Any = library.nn.Linear8bitLt(
            *size, False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
        )
        quantized.weight = library.nn.Int8Params(codes, requires_grad=False, CB=codes, SCB=scales)
        return quantized, library.functional.int8_vectorwise_dequant(codes, scales), codes.nbytes + scales.nbytes


@MODIFICATIONS.register("nf4")
class NF4(Quantization):
    """4-bit NormalFloat: blocks of 64 weights share a float32 scale, without a second quantisation of the scales.

    Products are computed with dequantised weights in the model's dtype. On a CPU with AVX-512 BF16 the library computes
    them in bfloat16 instead, also for a float32 model, and takes only layers whose shape fits its layout.
    """

    heading = "NF4"

    def check(self, library: Any, name: str, layer: nn.Linear) -> None:
        """Refuse shapes that do not fit the layout of the library's AVX-512 BF16 kernel."""
        if layer.weight.device.type != "cpu" or not library.functional.has_avx512bf16():
            return
        if layer.out_features % CPU_ROWS or layer.in_features % CPU_COLUMNS:
            raise CellError(
                f"nf4 cannot be computed for layer {name} of width {layer.out_features} × {layer.in_features}: "
                f"on this CPU bitsandbytes' 4-bit kernel needs outputs divisible by {CPU_ROWS} and inputs by "
                f"{CPU_COLUMNS}; use a GPU or another model."
            )

    def quantize(self, library: Any, layer: nn.Linear) -> tuple[nn.Module, Tensor, int]:
        """Build the layer with W_ij ≈ c_ij s_b, c_ij one of 16 quantiles of a normal, s_b the maximum of block b."""
        size, form = (layer.in_features, layer.out_features), {"compress_statistics": False, "quant_type": "nf4"}
        quantized: Any = library.nn.Linear4bit(*size, False, layer.weight.dtype, **form, device="meta")
        weight = library.nn.Params4bit(layer.weight.detach(), requires_grad=False, **form, module=quantized)
        quantized.weight = weight.to(layer.weight.device)
        state = quantized.weight.quant_state
        restored: Tensor = library.functional.dequantize_4bit(quantized.weight.data, state)
        return quantized, restored, quantized.weight.data.nbytes + state.absmax.nbytes


def _bitsandbytes() -> Any:
    """Return the library, kept quiet: it prints a notice when imported and one at every 8-bit product."""
    with quiet():
        import bitsandbytes
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes
