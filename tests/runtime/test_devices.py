"""A device is used if it is there, and refused by name if not; the CPU needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergegraph.errors import DeviceError
from mergegraph.runtime import accel, devices, race
from mergegraph.runtime.devices import choose_devices, place
from mergegraph.schedule.vram import Gpus

GIB = 2**30


class Machine:
    """A machine with some GPUs, and how quick they and the processor are in a trial."""

    def __init__(self) -> None:
        self.memory: dict[str, int] = {}
        self.rates = (3e9, 2e9)
        self.trials: list[tuple[tuple[str, ...], int]] = []

    def __iadd__(self, names: list[str]) -> Machine:
        self.memory |= {name: (8 + i) * GIB for i, name in enumerate(names)}
        return self

    def race(self, names: tuple[str, ...], threads: int) -> tuple[float, float]:
        self.trials.append((names, threads))
        return self.rates


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(accel, "cuda_memory", lambda: found.memory)
    monkeypatch.setattr(devices, "gpu_count", lambda: len(found.memory))
    monkeypatch.setattr(race, "race", found.race)
    return found


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_whoever_does_not_ask_for_a_gpu_by_name_gets_the_processor(machine: Machine, wanted: str) -> None:
    machine += ["cuda:0"]
    assert choose_devices(wanted) == ("cpu",)


def test_without_a_driver_the_processor_is_chosen_without_loading_torch() -> None:
    code = (
        "import sys; from mergegraph.runtime import devices\n"
        "devices.gpu_count = lambda: 0\n"
        "found = devices.place('auto', 2)\n"
        "assert (found.devices, found.gpus, found.reason) == (('cpu',), None, 'there is no NVIDIA GPU')\n"
        "assert devices.place('cpu', 2).devices == ('cpu',); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpus_that_win_a_trial_are_all_taken_and_what_is_free_on_the_fullest_bounds_them(
    machine: Machine,
) -> None:
    machine += ["cuda:0", "cuda:1"]
    found = place("auto", 5)
    assert found.devices == ("cuda:0", "cuda:1")
    assert found.gpus == Gpus(2, 6 * GIB)
    assert found.reason == "in a trial, cuda:0, cuda:1 did 3.00 GB/s and the processor 2.00 GB/s"
    assert machine.trials == [(("cuda:0", "cuda:1"), 5)]


def test_gpus_that_lose_a_trial_are_left_alone_and_the_reason_says_by_how_much(machine: Machine) -> None:
    machine += ["cuda:0"]
    machine.rates = (1e9, 2e9)
    found = place("auto", 5)
    assert (found.devices, found.gpus, found.vram) == (("cpu",), None, 0)
    assert found.reason == "in a trial, cuda:0 did 1.00 GB/s and the processor 2.00 GB/s"


def test_a_gpu_that_torch_cannot_use_is_said_to_be_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    found = place("auto", 1)
    assert (found.devices, found.reason) == (("cpu",), "torch cannot use the GPU")
    assert machine.trials == []


@pytest.mark.parametrize(("vram", "bound"), [(None, 6 * GIB), (2 * GIB, 2 * GIB), (80 * GIB, 8 * GIB)])
def test_a_bound_on_gpu_memory_is_never_more_than_is_free(
    machine: Machine, vram: int | None, bound: int
) -> None:
    machine += ["cuda:0", "cuda:1"]
    found = place("cuda", 1, vram)
    assert (found.vram, found.reason, machine.trials) == (bound, "as asked for", [])


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("cuda", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:1", ("cuda:1",)),
        ("cuda:2,0", ("cuda:2", "cuda:0")),
        ("cuda:1,1,01", ("cuda:1",)),
    ],
)
def test_devices_that_are_there_are_taken_in_the_order_asked_for(
    machine: Machine, wanted: str, chosen: tuple[str, ...]
) -> None:
    machine += ["cuda:0", "cuda:1", "cuda:2"]
    assert choose_devices(wanted) == chosen


@pytest.mark.parametrize(
    "wanted",
    ["", "gpu", "CUDA", "cuda:", "cuda:a", "cuda:0,", "cuda:-1", "cuda 0", "cpu:0", "mps", "cuda:0\n"],
)
def test_what_is_no_device_is_refused_with_the_spellings(machine: Machine, wanted: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        choose_devices(wanted)
    assert "cuda:0,1" in str(caught.value.hint)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("wanted", "named"), [("cuda:3", "cuda:3"), ("cuda:0,7,9", "cuda:7, cuda:9")])
def test_a_missing_device_is_named_with_those_that_are_there(
    machine: Machine, wanted: str, named: str
) -> None:
    machine += ["cuda:0", "cuda:1"]
    with pytest.raises(DeviceError, match=f"^{named} is not available; this machine has cuda:0, cuda:1"):
        choose_devices(wanted)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_without_any_other_device_the_advice_is_the_processor(machine: Machine, wanted: str) -> None:
    with pytest.raises(
        DeviceError, match=f"{wanted} is not available; this machine has no CUDA device"
    ) as caught:
        choose_devices(wanted)
    assert caught.value.hint == "use --device cpu"
