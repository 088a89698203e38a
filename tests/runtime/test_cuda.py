"""On a real GPU: what the processor gives, within what was proven, and random masks bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mergegraph import compile_plan, ops, run, verify
from mergegraph.kernels.reduction import CHUNK
from mergegraph.methods import all_methods
from mergegraph.methods.base import MergeMethod
from mergegraph.runtime.devices import place
from mergegraph.runtime.streams import Cuda
from mergegraph.tensorspec import DType
from tests.engine.scenario import MEDIUM, MODELS, make, tensors_of, values
from tests.methods.arguments import eager_merge, merge_expression
from tests.runtime.harness import assert_same_bits, loads, schedule_run
from tests.runtime.test_lane import exact, lane_run, tensors_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
METHODS = [pytest.param(method, id=name) for name, method in all_methods().items()]


@pytest.fixture
def cuda() -> Cuda:
    return Cuda("cuda:0")


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32], ids=lambda d: d.name)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_it_gives_on_the_processor(
    method: MergeMethod, dtype: DType, cuda: Cuda
) -> None:
    tensors = tensors_for(method, (5 * CHUNK + 1003) // 64, 64)
    expression = merge_expression(method, tensors, {}, dtype)
    found = lane_run(expression, tensors, device=cuda).tensor
    expected = eager_merge(method, tensors, {}, dtype)
    if exact(expression):
        assert_same_bits(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-2 if dtype is DType.BF16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_tiles(method: MergeMethod, cuda: Cuda) -> None:
    tensors = tensors_for(method, (5 * CHUNK + 1003) // 64, 64)
    expression = merge_expression(method, tensors, {}, DType.F32)
    few, many = (lane_run(expression, tensors, tile, device=cuda) for tile in (64 * CHUNK, CHUNK))
    assert_same_bits(few.tensor, many.tensor)


@pytest.mark.parametrize("shape", [(3 * CHUNK + 5,), (1301, 129)], ids=str)
def test_random_masks_are_those_of_the_processor(shape: tuple[int, ...], cuda: Cuda) -> None:
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))
    change = ops.delta(loads([x])[0], ops.scale(loads([x])[0], 0.0))
    for kept in (
        ops.drop(change, 0.3, ops.stream(0)),
        ops.drop_by_rank(change, (0.3, 0.4), ops.stream(0)),
    ):
        assert_same_bits(lane_run(kept, [x], CHUNK, cuda).tensor, schedule_run(kept, [x]).tensor)


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_a_whole_run_stays_within_its_bounds_and_is_what_its_manifest_says(
    method: str, tmp_path: Path
) -> None:
    scenario = make(tmp_path / "models", {name: values(i, MEDIUM) for i, name in enumerate(MODELS)})
    compiled = compile_plan(scenario.plan(method), device="cuda", vram="512MiB")
    torch.cuda.reset_peak_memory_stats()
    report = run(compiled, tmp_path / "there")
    assert torch.cuda.max_memory_allocated() <= compiled.schedule.vram_peak <= 512 * 2**20
    assert report.device.startswith("cuda:0")
    run(scenario.plan(method), tmp_path / "here", device="cpu")
    there, here = tensors_of(tmp_path / "there"), tensors_of(tmp_path / "here")
    assert there.keys() == here.keys()
    for name, x in here.items():
        np.testing.assert_allclose(there[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    assert verify(tmp_path / "there") == []


def test_every_gpu_takes_part_and_the_bytes_stay_the_same(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("needs several CUDA devices")
    scenario = make(tmp_path / "models")
    one, all_ = tmp_path / "one", tmp_path / "all"
    run(scenario.plan("slerp"), one, device="cuda:0")
    report = run(scenario.plan("slerp"), all_, device="cuda")
    assert report.device.count("cuda:") == count
    assert {n: x.tobytes() for n, x in tensors_of(one).items()} == {
        n: x.tobytes() for n, x in tensors_of(all_).items()
    }


def test_auto_says_what_it_measured() -> None:
    found = place("auto", 2)
    assert "in a trial" in found.reason
    assert "/s" in found.reason
