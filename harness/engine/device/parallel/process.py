"""A follower as a process of its own, which outlives its parent by seconds at most.

python -m harness.engine.device.parallel.process HOST PORT RANK SIZE PARENT_PID
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_POLL_S = 1.0
_GRACE_S = 3.0


def main() -> None:
    """Entry point."""
    host, port, rank, size, parent_pid = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends this one
    _watch(int(parent_pid), f"rank {rank} of {size}")
    # torch takes seconds to import, in which the parent may already go
    from harness.engine.device.parallel.address import Address
    from harness.engine.device.parallel.follower import follow

    status = follow(Address(host, int(port)), int(rank), int(size), local_rank=int(rank))
    sys.stderr.flush()
    os._exit(status)  # a group that lost a rank may not be taken apart in order


def _watch(parent_pid: int, me: str) -> None:
    """End this process when its parent is gone, even where it waits for a device for ever."""

    def look() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_POLL_S)
        time.sleep(_GRACE_S)  # most often a collective fails first, and says more
        print(f"{me} ends: rank 0 (process {parent_pid}) is gone", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main()
