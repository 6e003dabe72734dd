"""What the engine tells reserving strategies about a request's length.

The estimates are the PagedAttention paper's three Orca baselines (section 6.1) and two more:
`predicted`, the truth distorted by a given bias and spread, and `none`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from harness.engine.request import Request

Estimate = Literal["max", "pow2", "oracle", "predicted", "none"]


@dataclass(frozen=True, slots=True)
class LengthEstimator:
    """Estimates how many tokens a request's sequence will hold.

    max: the request's own bound. pow2: prompt + true output rounded up to a power of two.
    oracle: exactly the positions that will be computed. predicted: the oracle, with the true
    output times a lognormal factor of median `bias` and log-standard-deviation `spread`, the
    same for the same request whatever else runs. none: 0. No estimate exceeds the request's
    bound.
    """

    kind: Estimate = "none"
    bias: float = 1.0
    spread: float = 0.0
    seed: int = 0

    @property
    def is_sufficient(self) -> bool:
        """No sequence will outgrow its estimate."""
        return self.kind in ("max", "pow2", "oracle")

    def expected_len(self, request: Request) -> int:
        """Tokens to reserve for `request`; 0 when no estimate is made."""
        if self.kind == "none":
            return 0
        if self.kind == "max":
            return request.max_len
        output_len = request.true_output_len
        if output_len is None:
            raise ValueError(
                f"allocator.expected={self.kind} needs to know the output length, but request "
                f"{request.request_id} ends freely: use workload.output=forced_ids or "
                "allocator.expected=max|none"
            )
        prompt_len = len(request.prompt_ids)
        if self.kind == "oracle":
            estimate = prompt_len + output_len - 1
        elif self.kind == "pow2":
            estimate = prompt_len + (1 << (output_len - 1).bit_length())
        else:
            estimate = prompt_len + self._predict(request.request_id, output_len) - 1
        return min(max(estimate, prompt_len), request.max_len)

    def revised_len(self, request: Request, current_len: int) -> int:
        """The estimate for a sequence that has to hold `current_len` tokens already: while it is
        too short, its output part is doubled."""
        estimate = self.expected_len(request)
        prompt_len = len(request.prompt_ids)
        while 0 < estimate < current_len and estimate < request.max_len:
            estimate = min(prompt_len + 2 * max(1, estimate - prompt_len), request.max_len)
        return estimate

    def _predict(self, request_id: int, output_len: int) -> int:
        noise = random.Random(f"{self.seed}:{request_id}").gauss(0.0, 1.0)
        return max(1, round(output_len * self.bias * math.exp(self.spread * noise)))
