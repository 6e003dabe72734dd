"""What requests have in common: a system prompt, or the history of a chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from harness.engine.request import Request
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context, Place, RequestBuilder
from harness.workloads.lazy_requests import LazyRequests
from harness.workloads.lengths import Pairs
from harness.workloads.limits import scale_length, scale_lengths
from harness.workloads.streams import Bools, Floats, Stream

SHARED_PREFIX_ID = 0


class SystemPrompt:
    """The tokens that a share of the requests (or chat sessions) begins with."""

    def __init__(self, config: WorkloadConfig, context: Context) -> None:
        self.fraction = config.shared_fraction
        length = shared_len(config)
        length = scale_length(length, config.scale) if length else 0
        self.ids: tuple[int, ...] = tuple(
            context.tokens.draw(Stream.SHARED_PREFIX, 0, length).tolist()
        )

    def head(self, variate: float) -> tuple[int, ...]:
        """The system prompt where `variate` falls into the share, else nothing."""
        return self.ids if variate < self.fraction else ()

    def declared(self, place: Place, head: tuple[int, ...]) -> Place:
        """`place`, declaring `head` as shared where there is one."""
        if not head:
            return place
        return replace(place, shared_prefix_id=SHARED_PREFIX_ID, shared_prefix_len=len(head))


def shared_len(config: WorkloadConfig) -> int:
    """Tokens of the system prompt before scaling, 0 without one."""
    return 0 if config.sharing == "none" else config.shared_len


def fitting_mask(config: WorkloadConfig, max_len: int, pairs: Pairs) -> Bools:
    """Which samples keep system prompt + prompt + output below `max_len`, before scaling."""
    shared = (pairs.variates < config.shared_fraction) * shared_len(config)
    mask: Bools = pairs.prompts + pairs.outputs + shared < max_len
    return mask


def single_requests(
    builder: RequestBuilder, pairs: Pairs, arrivals: Floats, system: SystemPrompt
) -> LazyRequests:
    """One request a sample, after the system prompt where the sample shares it."""
    config, limits = builder.config, builder.limits
    own_lens = scale_lengths(pairs.prompts, config.scale)
    wanted_lens = scale_lengths(pairs.outputs, config.scale)
    variates = pairs.variates

    def make(index: int) -> Request:
        head = system.head(float(variates[index]))
        lens = int(own_lens[index]), int(wanted_lens[index])
        own, output = builder.random_tokens(index, *lens)
        place = system.declared(Place(arrival_s=float(arrivals[index])), head)
        return builder.make(index, (*head, *own), output, place)

    head_lens = np.where(variates < system.fraction, len(system.ids), 0)
    prompt_lens = np.minimum(own_lens + head_lens, limits.max_len - 1)
    return LazyRequests(
        make,
        arrivals,
        prompt_lens,
        limits.each_max_tokens(prompt_lens),
        None if config.output == "free" else limits.cut_outputs(prompt_lens, wanted_lens),
        config.num_sequences,
    )


def add_chat_sessions(
    builder: RequestBuilder, pairs: Pairs, arrivals: Floats, system: SystemPrompt, count: int
) -> None:
    """Sessions of up to `turns` turns, one after the other, until there are `count` requests.

    Turn t's prompt is turn t-1's prompt, its forced output, and new user text; it arrives
    `think_s` after turn t-1 ended. Every turn takes the next sample of lengths. A session
    ends early when its next turn would not stay below the bound; that sample then opens the
    next session. With `max_prompt_len`, prompts keep their last tokens and only those count.
    """
    longest = _longest_prompt(builder.config)
    samples = _scaled(builder.config, pairs, arrivals)
    starts = iter(arrivals.tolist())
    sample = next(samples, None)
    session = 0
    while sample is not None and builder.next_id < count:
        head = system.head(sample[2])
        history = head
        place = Place(arrival_s=next(starts), session_id=session)
        for turn in range(builder.config.turns):
            if sample is None or builder.next_id == count:
                break
            prompt_len, output_len = sample[0], sample[1]
            whole_len = len(history) + prompt_len
            if turn and min(whole_len, longest) + output_len >= builder.limits.max_len:
                break
            text, output = builder.random_tokens(builder.next_id, prompt_len, output_len)
            prompt = (*history, *text)[-longest:]
            declared = system.declared(place, head) if whole_len <= longest else place
            request = builder.add(prompt, output, declared)
            history = (*request.prompt_ids, *(request.forced_ids or ()))
            place = Place(builder.config.think_s, session, after_request=request.request_id)
            sample = next(samples, None)
        session += 1


def _longest_prompt(config: WorkloadConfig) -> int:
    bound = config.max_prompt_len
    return sys.maxsize if bound is None else scale_length(bound, config.scale)


def _scaled(
    config: WorkloadConfig, pairs: Pairs, arrivals: Floats
) -> Iterator[tuple[int, int, float, float]]:
    prompts = scale_lengths(pairs.prompts, config.scale).tolist()
    outputs = scale_lengths(pairs.outputs, config.scale).tolist()
    return zip(prompts, outputs, pairs.variates.tolist(), arrivals.tolist(), strict=True)
