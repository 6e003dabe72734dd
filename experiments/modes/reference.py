"""What transformers itself answers: `generate`, with its own attention and its own cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.models import load_model
from harness.engine.device.sampler import sample
from harness.engine.request import Request, SamplingParams

_NO_TOKEN = 10**9
"""An end-of-sequence id that no model emits."""


class Answer(NamedTuple):
    """A request's outputs, one a sequence (beams best first), and the best logit less the second
    best at each position; beams have no margins."""

    token_ids: tuple[tuple[int, ...], ...]
    margins: tuple[tuple[float, ...], ...]


def transformers_model(config: ModelConfig) -> Any:
    """The weights of `load_model(config)` under transformers' eager attention, on the CPU."""
    ours = load_model(config).model
    their_config = copy.deepcopy(ours.config)
    their_config._attn_implementation = "eager"
    theirs = AutoModelForCausalLM.from_config(their_config)
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


class Reference:
    """Answers requests of a fixed output length, each by itself. Greedy requests and beams are
    `generate`'s own; samples are `generate`'s logits with each sample's random stream."""

    def __init__(self, config: ModelConfig) -> None:
        self._model = transformers_model(config)
        self._known: dict[object, Answer] = {}

    def answer(self, request: Request) -> Answer:
        """Its outputs; ValueError where the length is not fixed beforehand."""
        if request.forced_len is None or request.eos_ids:
            raise ValueError(f"request {request.request_id}: set forced_len, and no eos_ids")
        prompt, length = tuple(request.prompt_ids), request.forced_len
        key = (prompt, length, request.num_samples, request.beam, request.sampling)
        if key not in self._known:
            if request.beam is not None:
                self._known[key] = self._beams(request)
            elif request.sampling.temperature > 0:
                params = [request.sampling.for_sample(k) for k in range(request.num_samples)]
                self._known[key] = self._drawn(prompt, length, params)
            else:
                self._known[key] = self._drawn(prompt, length, None)
        return self._known[key]

    def _beams(self, request: Request) -> Answer:
        params = request.beam
        assert params is not None and request.forced_len is not None
        done = self._generate(
            tuple(request.prompt_ids),
            request.forced_len,
            num_beams=params.width,
            num_return_sequences=params.width,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        return Answer(_outputs(done.sequences, len(request.prompt_ids)), ())

    def _drawn(
        self, prompt: tuple[int, ...], length: int, params: Sequence[SamplingParams] | None
    ) -> Answer:
        """One output a sampling; the best logit each time where there is none."""
        chooser = [] if params is None else [_Chooser(params, len(prompt))]
        done = self._generate(
            prompt,
            length,
            rows=len(params or [None]),
            logits_processor=LogitsProcessorList(chooser),
            output_logits=True,
        )
        best = torch.stack(done.logits, dim=1).topk(2).values
        margins = (best[..., 0] - best[..., 1]).tolist()
        return Answer(_outputs(done.sequences, len(prompt)), tuple(map(tuple, margins)))

    def _generate(
        self, prompt: tuple[int, ...], length: int, rows: int = 1, **settings: Any
    ) -> Any:
        ids = torch.tensor([prompt]).repeat(rows, 1)
        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=_NO_TOKEN,
            pad_token_id=0,
            return_dict_in_generate=True,
            **settings,
        )


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` no other token than the one that a row's random stream draws."""

    def __init__(self, params: Sequence[SamplingParams], prompt_len: int) -> None:
        self._params = params
        self._prompt_len = prompt_len

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._prompt_len
        chosen = sample(scores.clone(), self._params, [position] * len(self._params)).token_ids
        only = torch.full_like(scores, float("-inf"))
        only[torch.arange(len(chosen)), chosen] = 0.0
        return only


def _outputs(sequences: Tensor, prompt_len: int) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, sequences[:, prompt_len:].tolist()))
