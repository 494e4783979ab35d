"""Who says nothing of sampling gets what the model's makers recommend; who says anything gets what was said."""

from __future__ import annotations

import argparse

import pytest

from swarm.cli.ask import GenerateConfig
from swarm.cli.common import member_config, route_rules
from swarm.cli.main import build_parser
from swarm.cli.through import body
from swarm.model.sampling import OWN, Sampling, recommended, say_settings

MAKERS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20.0, "repetition_penalty": 1.1}


def parsed(*words: str) -> argparse.Namespace:
    return build_parser("generate").parse_args(["generate", "hello", *words])


def config(*words: str) -> GenerateConfig:
    arguments = parsed(*words)
    return GenerateConfig.from_arguments(arguments, member_config(arguments), "hello", route_rules(arguments))


@pytest.mark.parametrize(("words", "own"), [((), True), (("--seed", "3"), True), (("--top-p", "0.5"), False)])
def test_naming_one_setting_settles_them_all(words: tuple[str, ...], own: bool) -> None:
    made = config(*words)
    assert made.own is own
    asked = body(parsed(*words), "hello")
    assert [name for name in OWN if name in asked] == ([] if own else list(OWN))


def test_greedy_is_said_by_a_temperature() -> None:
    made = config("--temperature", "0")
    assert not made.own and made.request.sampling == Sampling()
    assert body(parsed("--temperature", "0"), "hello")["repetition_penalty"] == 1.0


def test_settings_are_taken_by_field() -> None:
    found = recommended(Sampling(seed=5), MAKERS)
    assert found == Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1, seed=5)
    assert say_settings(found) == "temperature 0.7, top-p 0.8, top-k 20, repetition-penalty 1.1"
    assert recommended(Sampling(), {"top_k": -1}) == Sampling() and say_settings(Sampling()) == ""
