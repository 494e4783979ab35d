"""A ring in one process whose stages sign: real sockets, real receipts, kept rows, and stages that may lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import receipts
from draft.suffix import SuffixDrafter
from receipts.record.row_opening import CrossedFrame, OpeningRequest
from receipts.record.rows import RowStore
from swarm.base.errors import PeerError
from swarm.model.block import Block, load_block
from swarm.model.compiling import Compiler
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.kvcache import KVPool
from swarm.model.prune import inner_model
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.recheck.auditor import RingAuditor
from swarm.ring.opening import StagePlan
from swarm.ring.signer import ReceiptSigner, open_log, salted
from swarm.ring.witness_service import WITNESS, WITNESS_REQUEST, NotaryServer, WitnessRequest
from swarm.run.api import CommittedTokens, Finished, RunRequest, RunResult
from swarm.run.engine import Drafting, RunEngine, TargetFacts
from swarm.run.receipt import ReceiptPlan
from swarm.stage.admission import HostedModel
from swarm.stage.server import StageServer
from tests.ring.routes import Decodes, FixedRouter, PrivateFrom

SOFTWARE = receipts.Software("wanswarm", "test", "11" * 32)


class Suffixes:
    """Drafters of the ring: the suffix drafter, unless a request wants none."""

    def make(self, request: RunRequest) -> Drafting:
        if request.speculation == "plain":
            return Drafting("none")
        suffix = SuffixDrafter()
        suffix.begin(request.prompt_ids, request.sampling)
        return Drafting("suffix", inline=suffix)

    def give_back(self, drafting: Drafting) -> None:
        """Nothing is shared."""


Twist = Callable[[Block], None]
"""Makes a stage lie: changes its block in place."""


@dataclass
class Node:
    """One node of the ring: a stage, or a witness when `server` is None."""

    identity: Identity
    board: Switchboard
    address: tuple[str, int]
    notary: ReceiptSigner
    server: StageServer | None = None
    plan: StagePlan | None = None
    task: asyncio.Task[None] | None = None

    async def kill(self) -> None:
        """Cut it off as kill -9 would."""
        assert self.task is not None
        self.task.cancel()
        for peer in self.board.peers():
            peer.drop("killed")
        await self.board.aclose()


@dataclass
class SignedRing:
    nodes: list[Node]
    witnesses: list[Node]
    desk: RunEngine
    board: Switchboard
    folder: Path
    compiler: Compiler | None = None

    async def generate(self, request: RunRequest, path: Path | None = None, drop_after: int = 0) -> RunResult:
        """One run to its end. `drop_after`: kill the second stage when so many tokens have come."""
        seen = 0
        async with aclosing(self.desk.run(request, path)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    seen += len(event.tokens)
                    if drop_after and seen >= drop_after:
                        drop_after = 0
                        await self.nodes[1].kill()
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("the run has no end")

    def auditor(self, checkpoint: Checkpoint, group_bytes: int | None = None) -> RingAuditor:
        """An auditor that calls the nodes over their sockets, from another thread than this loop's."""
        return RingAuditor(checkpoint, Asked(self, asyncio.get_running_loop()), group_bytes, compiler=self.compiler)

    async def ask(self, node: str, request: OpeningRequest) -> bytes | None:
        there = next(found for found in self.nodes if found.identity.id.hex() == node)
        try:
            peer = await self.board.peer(there.identity.id, [there.address], 5.0)
            return bytes((await peer.call(Message("receipt.audit", {}, request.to_bytes()), 30.0)).body)
        except PeerError:
            return None


@dataclass
class Asked:
    """The nodes of a ring, asked from another thread than the loop's."""

    ring: SignedRing
    loop: asyncio.AbstractEventLoop

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[CrossedFrame] = ()) -> bytes | None:
        return asyncio.run_coroutine_threadsafe(self.ring.ask(node, request), self.loop).result(60)


@dataclass
class Watching:
    """Who takes part in receipts besides the requester: all of these nodes countersign."""

    board: Switchboard
    nodes: Sequence[Node]
    dtype: str

    def ordered_dtype(self, stages: Sequence[StagePlan]) -> str:
        return self.dtype

    def witnesses(self, stages: Sequence[StagePlan], count: int | None) -> list[bytes]:
        return [node.identity.id for node in self.nodes]

    async def ask_witness(self, node: bytes, asked: WitnessRequest) -> bytes:
        there = next(n for n in self.nodes if n.identity.id == node)
        peer = await self.board.peer(node, [there.address], 5.0)
        return bytes((await peer.call(Message(WITNESS, WITNESS_REQUEST.header(asked)), 5.0)).header["envelope"])

    def unlike(self, signed: Sequence[tuple[bytes, str | None]]) -> None:
        return None


@asynccontextmanager
async def signed_ring(
    checkpoint: Checkpoint,
    spans: Sequence[tuple[int, int]],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    wire: str | None = None,
    threads: int = 1,
    twists: dict[int, Twist] | None = None,
    blocks: dict[int, Block] | None = None,
    witnesses: int = 0,
    disclose: Sequence[int] = (),
    decode: Callable[[Sequence[int]], str] = lambda ids: "".join(f" {i}" for i in ids),
    eos: frozenset[int] = frozenset(),
    keep_s: float = 0.0,
    compiler: Compiler | None = None,
    unfit: Sequence[int] = (),
) -> AsyncIterator[SignedRing]:
    """Nodes that hold `spans` in this order. twists: which of them lie; blocks: hosted instead of loading;
    compiler: reads constraints, at every node but those of `unfit`.
    """
    manifest = checkpoint.manifest
    name = "float32" if dtype == torch.float32 else "bfloat16"
    computes = next(iter(blocks.values())).computes_in if blocks else name
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for index, span in enumerate(spans):
            lies = twists is not None and index in twists
            block = (blocks or {}).get(index) or load_block(
                checkpoint, *span, torch.device("cpu"), dtype, blocked=not lies
            )
            if twists and lies:
                twists[index](block)
            nodes.append(
                await _node(
                    stack, checkpoint, folder / f"node-{index}", block, threads, index in disclose,
                    None if index in unfit else compiler,
                )
            )  # fmt: skip
        watching = [
            await _node(stack, checkpoint, folder / f"witness-{index}", None, 1, False) for index in range(witnesses)
        ]
        identity = Identity.generate()
        board = await stack.enter_async_context(Switchboard(identity))
        log = open_log(folder / "requester", identity.id)
        notary = ReceiptSigner(log.author(identity.sign), log, SOFTWARE, manifest.digest, manifest.weights_digest)
        stack.callback(notary.close)

        desk = RunEngine(
            board,
            TargetFacts(manifest.digest, manifest.context, eos, Decodes(decode), compiler=compiler),
            FixedRouter(lambda: [n.plan for n in nodes if n.plan is not None], manifest.n_layers, wire or name),
            Suffixes(),
            None,
            ReceiptPlan(
                folder / "receipts", notary, manifest.model, manifest.n_layers, Watching(board, watching, computes)
            ),
            PrivateFrom(checkpoint, dtype),
            keep_s,
        )  # fmt: skip
        for kind, handler in desk.handlers().items():
            board.handle(kind, handler)
        await stack.enter_async_context(desk)
        yield SignedRing(nodes, watching, desk, board, folder, compiler)


async def _node(
    stack: AsyncExitStack,
    checkpoint: Checkpoint,
    state: Path,
    block: Block | None,
    threads: int,
    disclose: bool,
    compiler: Compiler | None = None,
) -> Node:
    manifest = checkpoint.manifest
    identity = Identity.generate()
    board = Switchboard(identity)
    log = open_log(state / "log", identity.id)
    private = (salted("uuid", f"GPU-{state.name}"),)
    hardware = receipts.Hardware("Test CPU", "cpu", 8 << 30, "", "Test CPU", 2, private[0].digest, {"1": 900})
    notary = ReceiptSigner(
        log.author(identity.sign), log, SOFTWARE, manifest.digest, manifest.weights_digest, hardware, private,
        RowStore(state / "rows"), disclose,
    )  # fmt: skip
    stack.callback(notary.close)
    handlers = dict(NotaryServer(notary, board).handlers())
    node = Node(identity, board, ("", 0), notary)
    if block is not None:
        hosted = HostedModel(manifest.digest, block, KVPool(block, 1 << 30), "cpu", identity.id, compiler)
        node.server = StageServer(hosted, board, threads=threads, notary=notary)
        board.watch(node.server)
        handlers |= node.server.handlers()
    for kind, handler in handlers.items():
        board.handle(kind, handler)
    await stack.enter_async_context(board)
    node.address = await board.listen("127.0.0.1", 0)
    if node.server is not None and block is not None:
        node.plan = StagePlan(identity.id, (node.address,), block.first, block.last)
        node.task = asyncio.create_task(node.server.run())
        stack.push_async_callback(_stopped, node.task)
    return node


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


# Stages that lie


def quantised(bits: int) -> Twist:
    """Weights rounded to so many bits, one scale per row (int8) or per 32 columns (int4), as quantisers do."""

    def twist(block: Block) -> None:
        for module in inner_model(block.loaded.model).modules():
            if isinstance(module, nn.Linear):
                module.weight.data = _rounded(module.weight.data, bits)

    return twist


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    grouped = weight.float() if bits == 8 else weight.float().reshape(weight.shape[0], -1, 32)
    scale = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((grouped / scale).round() * scale).reshape(weight.shape).to(weight.dtype)


def _through(hidden_states: torch.Tensor, *others: object, **more: object) -> torch.Tensor:
    """In the place of a layer's forward: computes nothing."""
    return hidden_states


def skipping(count: int) -> Twist:
    """The first `count` layers of the block pass their input through."""

    def twist(block: Block) -> None:
        layers = inner_model(block.loaded.model).layers
        for index in range(min(count, len(layers))):
            layers[index].forward = _through

    return twist


def identity(block: Block) -> None:
    """Nothing is computed at all."""
    skipping(block.last - block.first)(block)


LIES: dict[str, Twist] = {
    "int8": quantised(8),
    "int4": quantised(4),
    "a skipped layer": skipping(1),
    "identity": identity,
}
