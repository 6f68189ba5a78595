"""LoRA: frozen weights learn through the product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685. The weights may be in few bits, as Dettmers et al. 2023,
arXiv:2305.14314, have it.
"""

from khub import ops
from khub.layers import Dense, EinsumDense, Embedding
from khub.models import quantization
from khub.models.quantization import Bits, become, chosen, weight_of


class LowRank:
    """A layer whose weight (..., units) has a (..., rank) @ b (rank, units) added to it."""

    def _added_by_lora(self, x):
        return ops.matmul(x, self.lora_b) * (self.lora_alpha / self.lora_rank)

    def merged(self):
        """The weight with what was learned, float32."""
        a, b = (ops.cast(v.value, "float32") for v in self._lora())
        weight = ops.cast(getattr(self, weight_of(self)).value, "float32")
        return weight + ops.matmul(a, b) * (self.lora_alpha / self.lora_rank)
