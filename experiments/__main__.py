"""python -m experiments NAME ...: a command about runs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import commands
from harness.conversion import unknown_name
from harness.reporting import reporting

_EXAMPLES = """\
examples:
  python -m experiments modes --family llama                # the tokens under every strategy
  python -m experiments replay results/single/RUN_ID        # decide a stored run again
  python -m experiments calibrate --validate                # how far off simulated runs are here

python -m experiments COMMAND --help says more of one; runs are made by python -m harness."""


def main(arguments: Sequence[str]) -> int:
    """Do the command named first; without one, list them all. 2 for a wrong command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in commands.available():
        message = unknown_name(name, commands.available(), "command")
        print(f"error: {message}", file=sys.stderr)
        return 2
    return reporting(lambda: int(commands.load(name).main(rest)))


def _overview() -> str:
    lines = ["usage: python -m experiments COMMAND ...", ""]
    lines += [f"  {name:<18} {_summary(name)}" for name in commands.available()]
    return "\n".join([*lines, "", _EXAMPLES])


def _summary(name: str) -> str:
    """The first sentence of its docstring, read without importing what it needs."""
    spec = importlib.util.find_spec(f"{commands.__name__}.{name}")
    assert spec is not None and spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split())
    return sentence.split(". ")[0].split(": `")[0].rstrip(".:")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
