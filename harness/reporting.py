"""How a command that cannot go on says so: one line, and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from harness.config import ConfigError
from harness.runs.interrupted import EXIT_STATUS, Interrupted
from harness.runs.store import NotStoredError


def reporting(task: Callable[[], int]) -> int:
    """The exit status of `task`; what stops it is told in one line."""
    try:
        return task()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotStoredError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read what is printed has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        kept = ": free space, then repeat the command; stored runs are kept"
        way_out = kept if is_full(error) else ""
        print(f"error: {error}{way_out}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(f"\n{interruption}", file=sys.stderr)
        return interruption.status
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from what is stored", file=sys.stderr)
        return EXIT_STATUS


def is_full(error: OSError) -> bool:
    """Whether the disk is what it is about."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
