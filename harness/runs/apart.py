"""Code that is not the project's is asked what it is in a process of its own: whatever it does to
its process (threads, patched modules, an exit), the command that asks stays as it was."""

from __future__ import annotations

import functools
import json
import multiprocessing as mp
from collections.abc import Callable
from inspect import Parameter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from allocators import discovery
from harness.cluster import discovery as routers
from harness.config import ALLOCATOR_KEYS, ConfigError
from harness.engine.process_end import how_it_ended
from harness.facts import CodeFacts, one_line
from harness.own_code import blame, file_of, is_file
from harness.runs.processes import descendants, die_with_parent, kill, without_ctrl_c

LIMIT_S = 120.0
"""To be imported and constructed in: torch and the like take seconds, on a busy machine more."""


def apart(what: str, task: Callable[..., Any], *arguments: Any) -> Any:
    """The plain value that `task(*arguments)` returns in a process of its own.

    Raises ConfigError for what it raises; where its process ends over it, or it takes longer than
    LIMIT_S, the message begins with `what`.
    """
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, task, arguments), daemon=True)
    with without_ctrl_c():
        process.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_S):
            raise ConfigError(f"{what}: its code did not come to an end within {LIMIT_S:g} s")
        answer = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        ended = how_it_ended(process.exitcode)
        raise ConfigError(f"{what}: the process that executes it {ended}") from None
    finally:
        below = descendants(process.pid)
        process.kill()
        kill(below)
        process.join()
        receiver.close()
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer["value"]


def allocator_facts(spec: str) -> CodeFacts:
    """Of an allocator by name, or of FILE.py:CLASS, asked apart once per contents of the file.
    Raises ConfigError where there is none, or an option of it can be no key."""
    return _facts("allocator", spec)


def router_facts(spec: str) -> CodeFacts:
    """The same of a router."""
    return _facts("cluster.router", spec)


def _facts(key: str, spec: str) -> CodeFacts:
    if not is_file(spec):
        return CodeFacts(**_ASK[key](spec))
    file = file_of(spec)
    contents = file.read_bytes() if file.is_file() else b""
    return _asked(key, spec, file.absolute(), contents)


@functools.lru_cache(maxsize=64)
def _asked(key: str, spec: str, _file: Path, _contents: bytes) -> CodeFacts:
    return CodeFacts(**apart(f"{key}={spec}", _ASK[key], spec))


def _of_allocator(spec: str) -> dict[str, Any]:
    try:
        cls = discovery.load(spec)
        options = discovery.options(cls)
        name = vars(cls).get("name") if is_file(spec) else spec  # an inherited one is another's
        return {
            "name": one_line(str(name or "")) or cls.__name__,
            "defaults": {key: _plain_default(key, option) for key, option in options.items()},
            "labelled": list(map(str, cls.labelled_options)),
        }
    except BaseException as error:  # it is the user's code: whatever it raises ends it here
        if not is_file(spec):  # a signal that ends the command
            raise
        raise ConfigError(f"allocator={spec}: {blame(error, spec)}") from error


def _plain_default(key: str, option: Parameter) -> Any:
    """Raises ValueError where the option cannot be typed as a key."""
    if key in ALLOCATOR_KEYS:
        raise ValueError(f"its option {key!r} has the name of a key that every allocator has")
    if option.default is option.empty:
        raise ValueError(f"its option {key!r} needs a default value")
    try:
        return json.loads(json.dumps(option.default))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"its option {key!r} has the default {option.default!r}: give a number, text, true, "
            "false, None, or a list or mapping of these"
        ) from error


def _of_router(spec: str) -> dict[str, Any]:
    try:
        cls = routers.load(spec)
        return {"name": cls.__name__, "defaults": dict.fromkeys(routers.options(cls))}
    except BaseException as error:
        if not is_file(spec):
            raise
        raise ConfigError(f"cluster.router={spec}: {blame(error, spec)}") from error


_ASK: dict[str, Callable[[str], dict[str, Any]]] = {
    "allocator": _of_allocator,
    "cluster.router": _of_router,
}


def _answer(connection: Connection, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    try:
        answer = {"value": task(*arguments)}
    except ConfigError as error:
        answer = {"error": str(error)}
    connection.send_bytes(json.dumps(answer).encode())
