"""A Python that has imported what the documentation's commands import, and runs each command in a
fork of itself: a page of ten commands then takes seconds and not half a minute.

Reads one request a line, JSON: {"folder", "arguments", "output"}; `arguments` are what would follow
`python` on a command line (`-m MODULE ...` or `FILE ...`), `output` the file for what is printed.
Answers each with the exit status. A fork differs from a fresh process in one more way: the workers
of simulated runs are forked as well, where they would be spawned.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import experiments.present  # noqa: E402
import experiments.stored  # noqa: E402, F401
import harness.__main__  # noqa: E402, F401


def main() -> None:
    """Serve requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(_run(request["folder"], request["arguments"], request["output"]))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(folder: str, arguments: list[str], output: str) -> int:
    os.chdir(folder)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    multiprocessing.get_context = _forking(multiprocessing.get_context)  # type: ignore[assignment]
    try:
        if arguments[0] == "-m":
            sys.argv = ["python", *arguments[2:]]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # what would end a process ends this fork
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _forking(get_context: Callable[..., Any]) -> Callable[..., Any]:
    """Contexts that fork, but where torch is loaded: its threads do not survive that."""

    def choose(method: str | None = None) -> Any:
        return get_context(method if "torch" in sys.modules else "fork")

    return choose


if __name__ == "__main__":
    main()
