"""One decode engine, what drives it and what measures it.

Imported before torch, it bounds how long OpenMP's threads spin while they wait for one another.
By default that is for milliseconds, which costs nothing on a quiet machine; where other processes
use the cores, a step then takes ten times as long, for the one that spins keeps out the one that
it waits for.
"""

import os

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"
