"""A decoder layer's element-wise kernels in Triton: `kernels.reference_layer` says what they do."""

from kernels.triton_activation import silu_mul
from kernels.triton_norm import add_rms_norm
from kernels.triton_rope import rope_store

__all__ = ["add_rms_norm", "rope_store", "silu_mul"]
