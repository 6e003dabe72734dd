"""What requests have in common: a system prompt, or the history of a chat."""

from __future__ import annotations

import sys
from itertools import chain

import numpy as np

from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.lazy_requests import LazyRequests, RequestTable
from harness.workloads.lengths import Pairs
from harness.workloads.limits import Limits, scale_length, scale_lengths
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


def shared_len(config: WorkloadConfig) -> int:
    """Tokens of the system prompt before scaling, 0 without one."""
    return 0 if config.sharing == "none" else config.shared_len


def fitting_mask(config: WorkloadConfig, max_len: int, pairs: Pairs) -> Bools:
    """Which samples keep system prompt + prompt + output below `max_len`, before scaling."""
    shared = (pairs.variates < config.shared_fraction) * shared_len(config)
    mask: Bools = pairs.prompts + pairs.outputs + shared < max_len
    return mask


def single_requests(
    config: WorkloadConfig,
    context: Context,
    limits: Limits,
    pairs: Pairs,
    arrivals: Floats,
    system: SystemPrompt,
) -> LazyRequests:
    """One request a sample, after the system prompt where the sample shares it."""
    own_lens = scale_lengths(pairs.prompts, config.scale)
    shares = (pairs.variates < system.fraction) & (len(system.ids) > 0)
    head_lens = np.where(shares, len(system.ids), 0)

    def prompt(index: int) -> list[int]:
        own = context.tokens.draw(Stream.TOKENS, index, int(own_lens[index]))
        return [*system.ids[: head_lens[index]], *own.tolist()]

    table = RequestTable(
        prompt_lens=own_lens + head_lens,
        output_lens=scale_lengths(pairs.outputs, config.scale),
        arrivals_s=arrivals,
        shared_prefix_id=np.where(shares, SHARED_PREFIX_ID, -1),
        shared_prefix_len=head_lens,
    )
    return LazyRequests(config, context, limits, table, prompt)


def chat_sessions(
    config: WorkloadConfig,
    context: Context,
    limits: Limits,
    pairs: Pairs,
    arrivals: Floats,
    system: SystemPrompt,
) -> LazyRequests:
    """Sessions of up to `turns` turns, one after the other, a request a sample.

    Turn t's prompt is turn t-1's prompt, its forced output, and new user text; it arrives
    `think_s` after turn t-1 ended. Every turn takes the next sample of lengths. A session
    ends early when its next turn would not stay below the bound; that sample then opens the
    next session. With `max_prompt_len`, prompts keep their last tokens and only those count.
    """
    longest = _longest_prompt(config)
    text_lens = scale_lengths(pairs.prompts, config.scale)
    output_lens = scale_lengths(pairs.outputs, config.scale)
    head_lens = np.where(pairs.variates < system.fraction, len(system.ids), 0)
    openings, whole_lens = np.zeros_like(text_lens), np.zeros_like(text_lens)
    kept_lens = np.zeros_like(text_lens)
    opening = history_len = 0
    for index, (text_len, output_len) in enumerate(
        zip(text_lens.tolist(), output_lens.tolist(), strict=True)
    ):
        whole_len = history_len + text_len
        is_too_long = min(whole_len, longest) + output_len >= limits.max_len
        if index == 0 or index - opening == config.turns or is_too_long:
            opening, whole_len = index, int(head_lens[index]) + text_len
        prompt_len = min(whole_len, longest, limits.max_len - 1)
        openings[index], whole_lens[index] = opening, whole_len
        kept_lens[index] = limits.cut_output(prompt_len, output_len)
        history_len = prompt_len + int(kept_lens[index])

    def prompt(index: int) -> list[int]:
        """The session's tokens up to the text of turn `index`: all, or at least the last ones."""
        opening, length = int(openings[index]), 0
        parts: list[list[int]] = []
        for turn in range(index, opening - 1, -1):
            if turn < index:
                parts.append(_draw(context, Stream.OUTPUT, turn, kept_lens[turn]))
            text = _draw(context, Stream.TOKENS, turn, text_lens[turn])
            if turn == opening:
                text = [*system.ids[: head_lens[turn]], *text][-longest:][: limits.max_len - 1]
            parts.append(text)
            length += len(text) + int(kept_lens[turn])
            if length >= longest + int(kept_lens[index]):
                break
        return list(chain.from_iterable(reversed(parts)))[-longest:]

    indices = np.arange(len(text_lens))
    opens = openings == indices
    declares = (head_lens[openings] > 0) & (whole_lens <= longest)
    sessions = np.cumsum(opens) - 1
    table = RequestTable(
        prompt_lens=np.minimum(whole_lens, longest),
        output_lens=output_lens,
        arrivals_s=np.where(opens, arrivals[sessions], config.think_s),
        after_request=np.where(opens, -1, indices - 1),
        session_id=sessions,
        shared_prefix_id=np.where(declares, SHARED_PREFIX_ID, -1),
        shared_prefix_len=np.where(declares, head_lens[openings], 0),
    )
    return LazyRequests(config, context, limits, table, prompt)


def _draw(context: Context, stream: Stream, index: int, count: int) -> list[int]:
    ids: list[int] = context.tokens.draw(stream, index, int(count)).tolist()
    return ids


def _longest_prompt(config: WorkloadConfig) -> int:
    bound = config.max_prompt_len
    return sys.maxsize if bound is None else scale_length(bound, config.scale)
