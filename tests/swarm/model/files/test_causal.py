"""Which class computes a config's text, for every config that transformers has."""

from __future__ import annotations

import pytest
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from swarm.model.files.causal import causal_class


def test_the_mapping_is_followed_where_it_says_something() -> None:
    for config, kind in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        assert causal_class(config) is kind


def test_a_class_that_the_mapping_leaves_out_is_found_where_it_is_of_that_very_config() -> None:
    """Mistral 4 was refused: transformers lists its class beside those that take pictures."""
    found = {kind: one for kind, c in CONFIG_MAPPING.items() if (one := causal_class(c)) is not None}
    beside = {kind for kind in found if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING}
    whole = {kind for kind in beside if not CONFIG_MAPPING[kind].base_config_key}
    assert whole == {"mistral4"}
    assert all(one.config_class is CONFIG_MAPPING[kind] for kind, one in found.items() if kind in beside)


@pytest.mark.parametrize("kind", ["csm_depth_decoder_model", "kosmos_2_text_model", "clvp_decoder", "step3p5", "clip"])
def test_parts_that_are_no_models_of_text_have_none(kind: str) -> None:
    assert causal_class(CONFIG_MAPPING[kind]) is None


def test_a_name_alone_is_not_enough() -> None:
    class Mistral4Config(transformers.PreTrainedConfig):
        """Another of that name, of which no class was made."""

    assert causal_class(Mistral4Config) is None
