"""A step's time from the bytes it moves and the operations it does (Williams et al., "Roofline",
CACM 2009; for the operations of a decoder, Pope et al., MLSys 2023, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from harness.engine.cost.gemm import equivalent_rows
from harness.engine.cost.gpu import Gpu
from harness.engine.cost.step_work import StepWork
from harness.engine.device.model_shape import ModelShape

_LOGIT_BYTES = 4  # logits are turned to fp32 before a token is drawn


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of a published peak that the best kernels reach, each in (0, 1].

    gemm: of matrix products with many rows; 0.8 to 0.9 by FlashAttention-2 (Dao, 2023, section
    1). attention: of attention's operations over a long prompt; 0.5 to 0.73 on an A100 by the
    same paper's abstract. bandwidth: of the memory's; 1 is the data sheet's figure.
    """

    gemm: float = 0.85
    attention: float = 0.6
    bandwidth: float = 1.0


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that no data sheet has: axes to look along, not figures to believe in.

    pass_s: host time of a forward pass, a draft model's too; sequence_s: of each sequence in it.
    transfer_s: each transfer to the host or back, beside its bytes. allreduce_s: each all-reduce,
    beside its bytes.
    """

    pass_s: float = 0.0
    sequence_s: float = 0.0
    transfer_s: float = 0.0
    allreduce_s: float = 0.0


class Roofline:
    """The sum over a pass's operations of max(bytes / bandwidth, FLOP / peak), and overheads.

    Operations are the linear layers (one stream of weights), attention of the sequences that
    decode, attention of the others, and the output layer with the logits that are sampled from: a
    kernel of one cannot hide behind another's. Norms and activations move no bytes worth counting
    beside these. Attention reads whole pages.

    num_gpus: of tensor parallelism (Shoeybi et al., "Megatron-LM", 2019, section 3): each GPU has
    its part of weights, heads and FLOP; KV heads are replicated where they are fewer than GPUs;
    two all-reduces a layer go around a ring, so that each GPU sends 2 (n - 1) / n of their bytes.
    States of constant size are read and written once a pass by each sequence.
    page_bytes: of one page of one group of layers, on all GPUs; page_transfers: in so many parts
    it goes to the host, a tensor a layer each for keys and values.
    """

    def __init__(
        self,
        gpu: Gpu,
        shape: ModelShape,
        *,
        page_bytes: float,
        token_bytes: float,
        page_transfers: int = 1,
        num_gpus: int = 1,
        efficiency: Efficiency = Efficiency(),
        overheads: Overheads = Overheads(),
    ) -> None:
        bandwidth = gpu.bytes_per_s * efficiency.bandwidth * num_gpus
        self._bandwidth = bandwidth
        self._gemm_flops = gpu.flops * efficiency.gemm * num_gpus
        self._shape = shape
        self._layers_s: dict[int, float] = {0: 0.0}
        self._output_s: dict[int, float] = {0: 0.0}
        self._page_s = page_bytes / bandwidth
        self._written_s = token_bytes / bandwidth
        heads_flop = 4.0 * shape.num_q_heads * shape.head_dim
        self._pair_s = heads_flop / (gpu.flops * efficiency.attention * num_gpus)
        self._copy_s = 2 * self._page_s
        self._move_s = page_transfers * overheads.transfer_s + page_bytes / (
            gpu.pcie_bytes_per_s * num_gpus
        )
        self._pass_s = overheads.pass_s
        self._sequence_s = overheads.sequence_s + 2 * shape.state_bytes / bandwidth
        self._reduce_s = self._reduce_row_s = 0.0
        if num_gpus > 1:
            row_bytes = shape.hidden_size * shape.dtype_bytes
            self._reduce_s = 2 * shape.num_layers * overheads.allreduce_s
            sent = 2 * (num_gpus - 1) / num_gpus * row_bytes
            self._reduce_row_s = 2 * shape.num_layers * sent / gpu.peer_bytes_per_s

    def work_s(self, work: StepWork) -> float:
        """Seconds of a pass; a draft model's are not counted here."""
        (
            num_tokens, num_sequences, _, decode_pages, decode_pairs, prompt_pages, prompt_pairs,
            num_logits, _, _, num_copied, num_moved, _, _, _,
        ) = work  # fmt: skip
        seconds = self._pass_s + self._sequence_s * num_sequences
        if num_tokens:
            layers_s = self._layers_s.get(num_tokens)
            if layers_s is None:
                layers_s = self._layers_s[num_tokens] = self._layers(num_tokens)
            output_s = self._output_s.get(num_logits)
            if output_s is None:
                output_s = self._output_s[num_logits] = self._output(num_logits)
            # a key is written once, by the kernel that reads the others
            read_s = decode_pages * self._page_s + num_tokens * self._written_s
            decode_s = decode_pairs * self._pair_s
            seconds += layers_s + output_s + (read_s if read_s > decode_s else decode_s)
            if prompt_pages:
                seconds += max(prompt_pages * self._page_s, prompt_pairs * self._pair_s)
        if num_copied or num_moved:
            seconds += num_copied * self._copy_s + num_moved * self._move_s
        return seconds

    def _layers(self, num_tokens: int) -> float:
        """The linear layers of all tokens, and their all-reduces."""
        seconds = self._linear(num_tokens, self._shape.num_layer_parameters, 0.0)
        return seconds + self._reduce_s + num_tokens * self._reduce_row_s

    def _output(self, num_logits: int) -> float:
        """The output layer; logits are written and read once."""
        shape = self._shape
        logit_bytes = 2.0 * _LOGIT_BYTES * num_logits * shape.vocab_size
        return self._linear(num_logits, shape.vocab_size * shape.hidden_size, logit_bytes)

    def _linear(self, num_rows: int, num_weights: int, num_bytes: float) -> float:
        moved = num_weights * self._shape.dtype_bytes + num_bytes
        flop = 2.0 * num_weights * equivalent_rows(num_rows)
        return max(moved / self._bandwidth, flop / self._gemm_flops)
