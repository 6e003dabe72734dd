"""The console script `kvarena`: KEY=VALUE ... as `python -m harness` takes it, COMMAND ... as
`python -m experiments` does."""

from __future__ import annotations

import sys

from experiments.__main__ import main as command
from harness.__main__ import main as run


def main() -> None:
    """A first word without `=` is a command about runs; anything else is a run."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first.isidentifier():
        sys.exit(command(sys.argv[1:]))
    run()


if __name__ == "__main__":
    main()
