"""A ring inside one process: real sockets, real blocks of a tiny random model, no shortcuts between the parts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draft.base import Child, DraftStep, Expansion
from draft.lm import LmDrafter
from draft.suffix import SuffixDrafter
from draft.window import TextWindow
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.mtp import load_mtp
from swarm.model.sampler import Sampling
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.frame import Frame, parse_frame_untrusted
from swarm.ring.opening import StagePlan
from swarm.run.api import RunRequest
from swarm.run.engine import Drafting, RunEngine, TargetFacts
from swarm.stage.admission import HostedModel, StageLimits
from swarm.stage.mtp_session import MTPHost
from swarm.stage.server import StageServer
from tests.ring.routes import Decodes, FixedRouter, PrivateFrom

VOCAB = 97


@pytest.fixture
def frames_taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Frame]]:
    """Every frame that a stage takes in from now on, beside the first layer of the stage's block."""
    taken: list[tuple[int, Frame]] = []
    whole = StageServer._take_frame

    def watched(self: StageServer, peer: Peer, message: Message) -> None:
        assert self.hosted is not None
        taken.append((self.hosted.block.first, parse_frame_untrusted(message)))
        whole(self, peer, message)

    monkeypatch.setattr(StageServer, "_take_frame", watched)
    return taken


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 6 layers with random weights, saved as a Hugging Face folder."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
        initializer_range=0.4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({}))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LlamaForCausalLM:
    """The same model whole, by transformers."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return model.eval()


def reference(model: LlamaForCausalLM, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers generates, greedily."""
    with torch.inference_mode():
        out = model.generate(torch.tensor([list(prompt)]), max_new_tokens=tokens, do_sample=False)
    return [int(t) for t in out[0, len(prompt) :]]


@dataclass
class Stage:
    """One node of the test ring; `kill` cuts its connections as kill -9 would."""

    plan: StagePlan
    board: Switchboard
    server: StageServer
    alive: bool = True
    task: asyncio.Task[None] | None = field(default=None)

    async def kill(self) -> None:
        self.alive = False
        assert self.task is not None
        self.task.cancel()
        for peer in self.board.peers():
            peer.drop("killed")
        await self.board.aclose()


@dataclass
class TestRing:
    __test__ = False

    stages: list[Stage]
    desk: RunEngine
    board: Switchboard


@dataclass
class Drafters:
    """Drafters of the test ring: suffixes, or with draft "lm" the whole model, or one that has learned nothing.
    `window`: what a model drafter reads of a long text."""

    whole: Block
    bad: bool
    window: TextWindow | None = None

    def make(self, request: RunRequest) -> Drafting:
        if request.draft == "none" or request.speculation == "plain":
            return Drafting("none")
        if request.draft == "lm":
            context = self.window.context if self.window else 512
            lm = LmDrafter(self.whole, context=context, scratch=64, window=self.window)
            return Drafting("lm", deferred=Confused(lm) if self.bad else lm)
        suffix = SuffixDrafter()
        suffix.begin(request.prompt_ids, request.sampling)
        return Drafting("suffix", inline=suffix)

    def give_back(self, drafting: Drafting) -> None:
        """Nothing is shared."""


@dataclass
class Confused:
    """A drafter whose proposals are sure of themselves and wrong."""

    inner: LmDrafter
    name: str = "confused"

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.inner.begin(prompt, sampling)

    def step(self, step: DraftStep) -> list[Expansion]:
        return [
            Expansion(id, ((Child((id * 31 + step.depth) % VOCAB, 0.9), Child((id * 17 + 5) % VOCAB, 0.05)),))
            for id in step.expand
        ]


@pytest.fixture
def make_ring(tiny_folder: Path, tmp_path: Path) -> Callable[..., object]:
    """`async with make_ring([(0, 3), (3, 6)]) as ring`. `full`: numbers of the stages without room for a session;
    `exact`: as `load_block` has it."""

    @asynccontextmanager
    async def make(
        blocks: Sequence[tuple[int, int]],
        limits: StageLimits | None = None,
        kv_bytes: int = 64 << 20,
        full: Sequence[int] = (),
        keep_s: float = 0.0,
        bad_drafter: bool = False,
        dtype: torch.dtype = torch.float32,
        exact: bool = True,
    ) -> AsyncIterator[TestRing]:
        checkpoint = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
        manifest = checkpoint.manifest
        async with AsyncExitStack() as stack:
            stages: list[Stage] = []
            for index, (first, last) in enumerate(blocks):
                block = load_block(checkpoint, first, last, torch.device("cpu"), dtype, exact=exact)
                identity = Identity.generate()
                board = Switchboard(identity)
                head = load_mtp(checkpoint, block, "expanded") if block.tail else None
                hosted = HostedModel(
                    manifest.digest,
                    block,
                    KVPool(block, 1000 if index in full else kv_bytes),
                    "cpu",
                    identity.id,
                    mtp=None if head is None else MTPHost(head, KVPool(head.block, kv_bytes)),
                )
                server = StageServer(hosted, board, limits)
                board.watch(server)
                for kind, handler in server.handlers().items():
                    board.handle(kind, handler)
                await stack.enter_async_context(board)
                address = await board.listen("127.0.0.1", 0)
                stage = Stage(StagePlan(identity.id, (address,), first, last), board, server)
                stage.task = asyncio.create_task(server.run())
                stack.push_async_callback(_stopped, stage.task)
                stages.append(stage)

            board = await stack.enter_async_context(Switchboard(Identity.generate()))
            desk = RunEngine(
                board,
                TargetFacts(
                    manifest.digest, 512, frozenset(), Decodes(spaced), VOCAB, tail_drafts=manifest.mtp is not None
                ),
                FixedRouter(lambda: [s.plan for s in stages], manifest.n_layers, str(dtype).removeprefix("torch.")),
                Drafters(load_block(checkpoint, 0, manifest.n_layers, torch.device("cpu"), torch.float32), bad_drafter),
                private=PrivateFrom(checkpoint),
                keep_s=keep_s,
            )
            for kind, handler in desk.handlers().items():
                board.handle(kind, handler)
            await stack.enter_async_context(desk)
            yield TestRing(stages, desk, board)

    return make


def spaced(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) + " "


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
