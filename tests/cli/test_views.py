"""How answers look: complete, but never longer than a person reads."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console

from mergegraph.cli.info_view import show_checkpoint, show_methods
from mergegraph.cli.plan_view import show_plan
from mergegraph.cli.render import collapse, show_report
from mergegraph.methods import all_methods
from tests.cli.conftest import FakeEngine, report, summary


def shown(view: Any, *args: Any) -> str:
    console = Console(width=120, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        view(console, *args)
    return capture.get()


def plan_text(**changes: Any) -> str:
    return shown(show_plan, summary(**changes), "plan.yml")


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_layers_that_look_alike_are_one_row() -> None:
    text = words(plan_text())
    assert "lm_head.weight 1 256 × 64 bfloat16 merged 32.77 kB" in text
    assert "model.embed_tokens.weight 1 256 × 64 bfloat16 copied 32.77 kB" in text
    assert "model.layers.0–21 8 × 22 69.76 kB per layer bfloat16 merged 1.53 MB" in text


def test_a_layer_of_another_dtype_has_a_row_of_its_own() -> None:
    rows = summary()["outputs"]
    for row in rows:
        if row["name"].startswith("model.layers.3."):
            row["dtype"] = "float32"
    text = words(plan_text(outputs=rows))
    assert "model.layers.0–2, 4–21 8 × 21" in text
    assert "model.layers.3 8 × 1" in text


def test_twenty_thousand_outputs_are_a_handful_of_lines() -> None:
    row = {"shape": [8, 8], "dtype": "bfloat16", "bytes": 128, "kind": "merged", "shard": "model.safetensors"}
    outputs = [
        {**row, "name": f"model.layers.{layer}.mlp.experts.{expert}.w{w}.weight"}
        for layer in range(50)
        for expert in range(128)
        for w in (1, 2, 3)
    ]
    outputs += [{**row, "name": f"vision.block_{i}.weight"} for i in range(800)]
    text = plan_text(outputs=outputs, copied=[row["name"] for row in outputs])
    assert len(text.splitlines()) < 50
    assert "more: --json lists them all" in text


def test_memory_and_disk_are_told_against_their_limits() -> None:
    text = words(plan_text())
    assert "40.0 MiB proven peak, 1.00 GiB allowed, 2 threads" in text
    assert "free disk 50.00 GB" in text
    assert "read 3.00 GB, 6.00 GB in all passes" in text
    assert "short" not in text
    assert "short of what is written" in plan_text(free_disk=10)


def test_what_is_not_merged_is_told_with_the_reason() -> None:
    text = plan_text(
        dropped=[
            {"model": "./b", "tensor": f"model.layers.{i}.rotary.inv_freq", "reason": "not in the base"}
            for i in range(4)
        ],
        partial=[{"tensor": "lm_head.weight", "missing_from": ["./b"]}],
        config_differences=[{"key": "vocab_size", "values": {"./a": 32000, "./b": 32064, "./c": 32000}}],
        notes=["t is 0.5 everywhere [as set]"],
    )
    assert "Dropped from ./b (not in the base): 4 tensors\n  model.layers.{0–3}.rotary.inv_freq" in text
    assert "Not in ./b: 1 tensor\n  lm_head.weight" in text
    assert "vocab_size 32000 ./a, ./c" in words(text)
    assert "• t is 0.5 everywhere [as set]" in text


def test_names_that_differ_in_the_layer_collapse() -> None:
    names = ["h.0.w", "h.1.w", "h.3.w", "h.1.b", "top"]
    assert collapse(names) == ["h.{0–1, 3}.w", "h.1.b", "top"]


def test_a_report_warns_of_values_that_are_not_finite() -> None:
    text = shown(show_report, report(nonfinite={"model.layers.0.w": 3, "model.layers.1.w": 1}))
    assert "Warning: 4 values in 2 tensors not finite" in text
    assert "model.layers.{0–1}.w" in text
    assert "Warning" not in shown(show_report, report())


def test_a_report_says_what_was_kept_of_an_interrupted_run() -> None:
    assert "12 kept from an interrupted run" in shown(show_report, report(resumed=12))


def checkpoint(**changes: Any) -> dict[str, Any]:
    row = {"dtype": "bfloat16", "parameters": 4096, "bytes": 8192, "tensors": 22}
    return {
        "path": "/models/a",
        "tensors": 45,
        "parameters": 1_100_000_000,
        "bytes": 2_200_000_000,
        "dtypes": {"bfloat16": {"tensors": 45, "bytes": 2_200_000_000}},
        "shards": [{"file": "model.safetensors", "tensors": 45, "bytes": 2_200_000_000}],
        "stacks": [{"prefix": "model.layers", "count": 22}],
        "tied": True,
        "architectures": ["LlamaForCausalLM"],
        "config": {"hidden_size": 2048},
        "sidecars": ["tokenizer.json"],
        "groups": [
            {**row, "name": "model.layers.*.q.weight", "shape": [2, 2]},
            {**row, "name": "model.layers.*.k.weight", "shape": [2, 2], "tensors": 3},
            {**row, "name": "model.norm.weight", "shape": [2], "tensors": 1},
        ],
        **changes,
    }


def test_a_checkpoint_is_its_outside_tensors_and_one_layer() -> None:
    text = shown(show_checkpoint, checkpoint())
    assert "LlamaForCausalLM" in text
    assert "model.layers.*.q.weight 2 × 2 bfloat16 × 22" in words(text)
    assert text.index("model.norm.weight") < text.index("model.layers.*.q.weight")
    assert "tied to the input embedding" in text


def test_a_tensor_that_only_some_layers_have_says_so() -> None:
    text = words(shown(show_checkpoint, checkpoint()))
    assert "model.layers.*.k.weight 2 × 2 bfloat16 3 of 22" in text
    assert "not the same in every layer" in text


def test_inspect_prints_the_same_facts_as_json(cli: Any, engine: FakeEngine) -> None:
    engine.facts = checkpoint()
    assert '"hidden_size": 2048' in cli("inspect", "/models/a", "--json").stdout
    assert engine.asked["checkpoint"] == "/models/a"
    assert "1,100,000,000" in cli("inspect", "/models/a").stdout


def test_every_method_fits_the_table() -> None:
    text = shown(show_methods, all_methods())
    assert all(re.search(rf"^{name} ", text, re.MULTILINE) for name in all_methods())
