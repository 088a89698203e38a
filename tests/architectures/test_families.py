"""What families add to names: rules for the kind of each layer."""

from __future__ import annotations

import pytest

from mergegraph.architectures import all_families, family_of
from tests.architectures.families import config_of


def test_a_family_that_nobody_listed_needs_nothing_special() -> None:
    for model_type in ("brand_new", None, ""):
        assert family_of(model_type).layer_types is None


def test_no_two_families_claim_one_model_type() -> None:
    claimed = [model_type for family in all_families() for model_type in family.model_types]
    assert len(claimed) == len(dict.fromkeys(claimed))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "cohere2"])
@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_a_rule_for_layer_types_agrees_with_transformers(name: str, count: int) -> None:
    kind = type(config_of(name))
    config = kind(num_hidden_layers=count)
    rule = family_of(config.model_type).layer_types
    assert rule is not None
    assert rule(count, {"model_type": config.model_type}) == config.layer_types


def test_a_rule_reads_the_pattern_from_the_config() -> None:
    rule = family_of("gemma3_text").layer_types
    assert rule is not None
    kind = type(config_of("gemma3_text"))
    expected = kind(num_hidden_layers=4, sliding_window_pattern=2).layer_types
    assert rule(4, {"model_type": "gemma3_text", "sliding_window_pattern": 2}) == expected
