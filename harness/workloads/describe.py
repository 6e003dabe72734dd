"""Workloads in words, for tables and captions."""

from __future__ import annotations

from harness.workloads.config import WorkloadConfig


def sharing_in_words(config: WorkloadConfig) -> str:
    """What requests share; empty where nothing is."""
    head = f"a system prompt of {config.shared_len} tokens on {config.shared_fraction:.0%}"
    match config.sharing:
        case "system_prompt":
            return head
        case "chat":
            chat = f"chats of up to {config.turns} turns, {config.think_s:g} s apart"
            if config.max_prompt_len is not None:
                chat += f", cut to their last {config.max_prompt_len} tokens"
            return f"{chat}, {head}" if config.shared_len else chat
        case _:
            return ""


def bounds_in_words(config: WorkloadConfig, max_len: int | None, scale: float) -> str:
    """Bounds, and the scale that lengths really got."""
    words = [] if max_len is None else [f"prompt + output < {max_len}"]
    if config.max_output_len is not None:
        words.append(f"output <= {config.max_output_len}")
    if scale != 1:
        words.append(f"all lengths then x {scale:.4g}")
    return ", ".join(words)


def arrivals_in_words(config: WorkloadConfig) -> str:
    """The arrival process."""
    match config.arrivals:
        case "all_at_once":
            return "all at once"
        case "closed_loop":
            return f"closed loop of {config.concurrency}"
        case "constant":
            return f"constant {config.rate:g}/s"
        case "poisson":
            return f"Poisson {config.rate:g}/s"
        case "gamma":
            return f"gamma {config.rate:g}/s, burstiness {config.burstiness:g}"
        case _:
            fast = "" if config.speed_up == 1 else f", {config.speed_up:g} x as fast"
            return f"times of the trace{fast}"


def branches_in_words(config: WorkloadConfig) -> str:
    """How many sequences a request has; empty where it is one."""
    if config.beam_width > 1:
        return f"beam search of width {config.beam_width}"
    return f"{config.samples} samples a request" if config.samples > 1 else ""
