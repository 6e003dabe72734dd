"""What others had of the processor, from readings given as data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import psutil
import pytest

from harness.measure import interference as module
from harness.measure.interference import CpuReading, interference, is_disturbed, read_cpu


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [
        (12.0, 12.0, 0.0),
        (12.9, 12.0, 0.045),
        (13.5, 12.0, 0.075),
        (20.0, 4.0, 0.8),
        (11.9, 12.0, 0.0),  # ticks of the clock
        (0.0, 4.0, math.nan),  # a container that counts nothing
    ],
)
def test_others_are_what_the_cores_did_beside_this_process(busy_s, own_s, share) -> None:
    before, after = CpuReading(5.0, 100.0, 7.0, 2), CpuReading(15.0, 100 + busy_s, 7 + own_s, 2)
    found = interference(before, after)
    assert found.others_share == pytest.approx(share, nan_ok=True)
    assert found.own_cpu_s == pytest.approx(own_s)
    assert is_disturbed({"others_share": found.others_share}) == (share > 0.05)


def test_unknown_is_not_undisturbed_nor_disturbed() -> None:
    assert math.isnan(interference(None, CpuReading(1.0, 1.0, 1.0, 1)).others_share)
    assert not is_disturbed({}) and not is_disturbed({"others_share": math.nan})


def test_stolen_time_counts_and_idle_time_and_other_cores_do_not(monkeypatch) -> None:
    def core(**seconds: float) -> SimpleNamespace:
        return SimpleNamespace(_asdict=lambda: seconds)

    cores = [core(user=1, nice=2, system=3, idle=50, iowait=60, irq=4, softirq=5, steal=6, guest=1)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [*cores, core(user=1000, idle=0)])
    monkeypatch.setattr(module, "_usable", lambda num_cores: [0])
    reading = read_cpu()
    assert reading is not None and (reading.busy_s, reading.num_cores) == (21, 1)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: (_ for _ in ()).throw(OSError()))
    assert read_cpu() is None
