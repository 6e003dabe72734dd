"""Length scaling and the bounds a request states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.workloads.config import WorkloadConfig
from harness.workloads.streams import Ints


def scale_lengths(lengths: Ints, scale: float) -> Ints:
    """Every length times `scale`, rounded half to even, at least 1."""
    scaled: Ints = np.maximum(np.rint(lengths * scale), 1).astype(np.int64)
    return scaled


def scale_length(length: int, scale: float) -> int:
    """One length times `scale`, rounded half to even, at least 1."""
    return max(1, round(length * scale))


@dataclass(frozen=True, slots=True)
class Limits:
    """Serving bounds in tokens, after scaling: on prompt + output, and on the output."""

    max_len: int
    max_output_len: int

    @classmethod
    def of(cls, config: WorkloadConfig, scaled_max_len: int, scale: float) -> Limits:
        """The config's bound on outputs, scaled, beside a bound on prompt + output."""
        bound = max(2, scaled_max_len)
        longest = bound - 1
        if config.max_output_len is not None:
            longest = min(longest, scale_length(config.max_output_len, scale))
        return cls(bound, longest)

    def cut_output(self, prompt_len: int, output_len: int) -> int:
        """The output that still fits beside the prompt: rounding may have added a token."""
        return max(1, min(output_len, self.max_output_len, self.max_len - prompt_len))

    def max_tokens(self, prompt_len: int) -> int:
        """What a request asks for, not knowing its output: all that it may get."""
        return max(1, min(self.max_output_len, self.max_len - prompt_len))

    def cut_outputs(self, prompt_lens: Ints, output_lens: Ints) -> Ints:
        """`cut_output` of each."""
        left = np.minimum(self.max_output_len, self.max_len - prompt_lens)
        cut: Ints = np.maximum(1, np.minimum(output_lens, left))
        return cut

    def each_max_tokens(self, prompt_lens: Ints) -> Ints:
        """`max_tokens` of each."""
        asked: Ints = np.maximum(1, np.minimum(self.max_output_len, self.max_len - prompt_lens))
        return asked
