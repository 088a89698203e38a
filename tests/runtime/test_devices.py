"""A device is used if it is there, and refused by name if not; the CPU needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergegraph.errors import DeviceError
from mergegraph.runtime import accel
from mergegraph.runtime.devices import choose_devices


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    devices: list[str] = []
    monkeypatch.setattr(accel, "cuda_devices", lambda: tuple(devices))
    return devices


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_the_processor_is_the_usual_device_even_where_there_are_others(
    machine: list[str], wanted: str
) -> None:
    machine += ["cuda:0"]
    assert choose_devices(wanted) == ("cpu",)


def test_the_processor_is_chosen_without_loading_torch() -> None:
    code = (
        "import sys; from mergegraph.runtime.devices import choose_devices\n"
        "assert choose_devices('auto') == ('cpu',); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("cuda", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:1", ("cuda:1",)),
        ("cuda:2,0", ("cuda:2", "cuda:0")),
    ],
)
def test_devices_that_are_there_are_taken_in_the_order_asked_for(
    machine: list[str], wanted: str, chosen: tuple[str, ...]
) -> None:
    machine += ["cuda:0", "cuda:1", "cuda:2"]
    assert choose_devices(wanted) == chosen


@pytest.mark.parametrize(
    "wanted",
    ["", "gpu", "CUDA", "cuda:", "cuda:a", "cuda:0,", "cuda:-1", "cuda 0", "cpu:0", "mps", "cuda:0\n"],
)
def test_what_is_no_device_is_refused_with_the_spellings(machine: list[str], wanted: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        choose_devices(wanted)
    assert "cuda:0,1" in str(caught.value.hint)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("wanted", "named"), [("cuda:3", "cuda:3"), ("cuda:0,7,9", "cuda:7, cuda:9")])
def test_a_missing_device_is_named_with_those_that_are_there(
    machine: list[str], wanted: str, named: str
) -> None:
    machine += ["cuda:0", "cuda:1"]
    with pytest.raises(DeviceError, match=f"^{named} is not available; this machine has cuda:0, cuda:1"):
        choose_devices(wanted)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_without_any_other_device_the_advice_is_the_processor(machine: list[str], wanted: str) -> None:
    with pytest.raises(
        DeviceError, match=f"{wanted} is not available; this machine has no CUDA device"
    ) as caught:
        choose_devices(wanted)
    assert caught.value.hint == "use --device cpu"
