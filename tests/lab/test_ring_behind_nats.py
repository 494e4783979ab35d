"""A whole run over real NATs: requester and two stages behind home routers, one behind a symmetric NAT."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from receipts.check.verify import verify
from swarm.base.events import silent
from swarm.testbed.cluster import LocalRing, LocalSwarm, ProcessPlace
from tests.lab.lab import HostSpec, lab
from tests.swarm.serve.tiny import tiny_tokenizer
from tests.warm import warm

pytestmark = pytest.mark.lab

HOSTS = (HostSpec("cone"), HostSpec("cone"), HostSpec("sym"), HostSpec("cone"))
"""Three stages and the requester; every pair is 50 ms apart, the public node "s" 25 ms from each."""
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of bytes, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("bytes")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def expected(folder: Path, ids: list[int]) -> list[int]:
    """What transformers generates, greedily, in float32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
    return [int(t) for t in out[0, len(ids) :]]


DIRECT = {"direct", "reverse", "punched"}
EDGES = (DIRECT, DIRECT, {"relay"}, {"relay"})
"""Requester to head, head to middle: cone to cone. Middle to tail, tail to requester: a symmetric NAT at one end."""
ATTEMPTS = 3
"""It is a race: on a busy machine the relay may come in first, which is right, only slower; it is left later."""


def edges(receipt: Path) -> list[set[str]]:
    """The kinds of each edge of the ring, in order, as the nodes at its two ends signed them."""
    found: dict[int, set[str]] = {}
    for envelope in json.loads(receipt.read_text())["envelopes"]:
        statement = json.loads(base64.b64decode(envelope["payload"]))
        if statement["predicateType"].endswith(":edge:v1"):
            edge = statement["predicate"]
            found.setdefault(edge["index"], set()).add(edge["link"])
    return [found[index] for index in sorted(found)]


def as_expected(kinds: list[set[str]]) -> bool:
    return len(kinds) == len(EDGES) and all(kind <= allowed for kind, allowed in zip(kinds, EDGES, strict=True))


@pytest.mark.timeout(300)
async def test_a_ring_of_nodes_that_cannot_be_dialled_generates_and_verifies(folder: Path, tmp_path: Path) -> None:
    async with lab(*HOSTS) as net:
        home = ProcessPlace(net.inside("s"), f"{net.address('s')}:7000")
        hidden = [ProcessPlace(net.inside(host), "0.0.0.0:7000") for host in net.hosts]
        words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"))
        swarm = LocalSwarm(
            tmp_path,
            model=str(folder),
            arguments=words,
            places=(home, *hidden[:3]),
            requester=hidden[3],
            patience=120,
            command=warm(),
        )
        ring = LocalRing(swarm, silent)
        try:
            await ring.add((0, 1), "--relay")
            for layers in ((0, 2), (2, 4), (4, 6)):
                await ring.add(layers)
            for _ in range(ATTEMPTS):
                receipt = tmp_path / "receipt.json"
                result = await ring.generate(
                    "over the hills", "--raw", "--ignore-eos", "--max-tokens", str(TOKENS), "--models",
                    str(tmp_path / "models"), "--receipt", str(receipt), "--no-lan", timeout=120,
                )  # fmt: skip
                assert [tuple(stage["layers"]) for stage in result["ring"]] == [(0, 2), (2, 4), (4, 6)]
                assert result["token_ids"] == expected(folder, result["prompt_token_ids"])
                verdict = verify(receipt.read_bytes())
                assert verdict.refusal is None, verdict
                if as_expected(kinds := edges(receipt)):
                    break
                receipt.unlink()
            assert as_expected(kinds), kinds
            assert {stage["edge"] for stage in result["ring"]} <= DIRECT | {"relay"}
        finally:
            await ring.stop()
