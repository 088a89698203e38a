"""The config of a mixture: what the base model's says, and what routing needs, all written out."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.moe import BASIC_KEYS, MoeFamily, Options

LEFT = ("architectures", "model_type", "auto_map", "quantization_config", "transformers_version")
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")


def config_of(family: MoeFamily, base: Body, options: Options, size: int, shared_size: int) -> dict[str, Any]:
    """The ``config.json`` of a mixture of `family` on the body of `base`.

    Args:
        family: the family to build.
        base: the base model.
        options: what the plan asks for.
        size: the size of an expert.
        shared_size: the size of the shared expert's MLP; zero if there is none.
    """
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.name}
    config |= _carried(family, base)
    if family.rope:
        config |= _rope(family, base)
    if family.bias_key is not None:
        config[family.bias_key] = bool(base.biased) or family.always_biased
    config |= dict.fromkeys(family.expert_keys, options.experts)
    config[family.active_key] = options.active
    config |= dict.fromkeys(family.size_keys, size)
    config |= _shared(family, options, shared_size)
    config |= _dense_layers(family, base, options)
    config |= deepcopy(dict(family.fixed))
    if family.extra is not None:
        config |= family.extra(base, options)
    return _wrapped(family, base, config)


def _carried(family: MoeFamily, base: Body) -> dict[str, Any]:
    if family.keys is None:
        left = (*LEFT, *_ROPE) if family.rope else LEFT
        carried = {**base.family.defaults, **base.config}
        return deepcopy({k: v for k, v in carried.items() if k not in left})
    known = {**base.family.defaults, **base.config}
    carried = {key: known[key] for key in (*BASIC_KEYS, *family.keys) if key in known}
    carried["num_key_value_heads"] = base.kv_heads
    if "head_dim" in family.can:
        carried["head_dim"] = base.head_dim
    return deepcopy(carried)


def _rope(family: MoeFamily, base: Body) -> dict[str, Any]:
    """The rotary embedding as transformers 5 reads it, and as everything older does."""
    rope = {k: v for k, v in base.rope.items() if k != "partial_rotary_factor"}
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    found: dict[str, Any] = {}
    if "partial_rotary" in (*family.can, *family.must):
        rope["partial_rotary_factor"] = found["partial_rotary_factor"] = base.partial
    found["rope_parameters"] = rope
    found["rope_theta"] = rope.get("rope_theta")
    if scaling["rope_type"] != "default":
        found["rope_scaling"] = scaling
    return deepcopy(found)


def _shared(family: MoeFamily, options: Options, size: int) -> dict[str, Any]:
    shared = family.shared
    if shared is None:
        return {}
    found: dict[str, Any] = {}
    if shared.size_key is not None:
        found[shared.size_key] = size
    if shared.count_key is not None:
        found[shared.count_key] = max(1, options.shared) if size else 0
    return found


def _dense_layers(family: MoeFamily, base: Body, options: Options) -> dict[str, Any]:
    rule, kept = family.dense_layers, options.keep_dense_layers
    if rule is None:
        return {}
    values: Mapping[str, Any] = {
        "count": kept,
        "dense": list(range(kept)),
        "sparse": list(range(kept, base.layers)),
    }
    return {rule.key: values[rule.value]}


def _wrapped(family: MoeFamily, base: Body, config: dict[str, Any]) -> dict[str, Any]:
    """The config of the multimodal model around the language model, if the base is one."""
    if base.wrapper is None:
        return config
    model_type, architecture = family.nested[base.wrapper]
    outer = deepcopy({k: v for k, v in base.dense.config.items() if k not in LEFT})
    inner = {k: v for k, v in config.items() if k != "architectures"}
    return {"architectures": [architecture], "model_type": model_type, **outer, "text_config": inner}
