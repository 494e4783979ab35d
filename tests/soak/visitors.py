"""Hours of churn in minutes: peers by the hundred, in one process, come to a real node, take part in runs, and vanish.

    python -m tests.soak.visitors [--rounds 6] [--visits 300] [--how install_traced]

Each visit is a member with a stage behind the node and a guest that asks the ring of the two: keys and addresses of
their own, a handshake, a hello by an invite of their own, records told by gossip, a session, tokens, a receipt. It ends
as visits do: politely, in the middle of a run without a word, silent with open sockets, with its invite revoked; and
some come again under the same key. Between rounds the node is looked into (`inside`), and what grew is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import receipts
from receipts.record.rows import RowStore
from swarm.base.address import Address, parse_address_untrusted
from swarm.base.errors import PeerError, SwarmError
from swarm.base.nodeid import parse_id_untrusted
from swarm.discovery.connect import MemberConnector
from swarm.mesh.gossip import Gossip
from swarm.mesh.hello import enter, invited
from swarm.mesh.invite import Invite, make_invite, parse_invite_untrusted
from swarm.mesh.messages import HELLO
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.ring.opening import StagePlan
from swarm.ring.signer import ReceiptSigner, open_log
from swarm.ring.witness_service import AUDIT, NotaryServer
from swarm.run.api import CommittedTokens, Finished, RunRequest
from swarm.run.engine import RunEngine, TargetFacts
from swarm.run.receipt import ReceiptPlan
from swarm.stage.admission import HostedModel
from swarm.stage.server import StageServer
from tests.bench.heal import make_model
from tests.ring.nest import Node, nest
from tests.ring.routes import Decodes, FixedRouter
from tests.ring.signed import SOFTWARE, Suffixes, Watching
from tests.soak.inside import look

LAYERS, SPLIT = 6, 2
ENDS = ("polite", "cut", "silent", "revoked")
AT_ONCE = 4
MOST_SILENT = 24
AGAIN = 0.25
"""Share of visits under a key that was here before."""
RUN_S = 60.0


@dataclass
class Party:
    """One process's worth of a visit: a switchboard with gossip over it."""

    board: Switchboard
    gossip: Gossip
    address: Address | None

    def vanish(self) -> None:
        """As a process that was killed: every connection ends without a word."""
        for peer in self.board.peers():
            peer.drop("killed")

    def fall_silent(self) -> None:
        """As a process that is stopped: its sockets stay open, and nobody reads them."""
        for peer in self.board.peers():
            peer.channel.pause_reading()


@dataclass
class Crowd:
    """Visits to `node`, whose first layers the ring begins with. `blocks`: one for each visit at the same time."""

    node: Node
    checkpoint: Checkpoint
    blocks: asyncio.Queue[Block]
    folder: Path
    host: Party
    draw: random.Random
    ends: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    known: list[tuple[Identity, Saved]] = field(default_factory=list)
    silent: list[AsyncExitStack] = field(default_factory=list)
    numbers: int = 0

    @property
    def where(self) -> Address:
        """Of the node."""
        return parse_address_untrusted(self.node.ready["listen"])

    @property
    def id(self) -> bytes:
        return parse_id_untrusted(self.node.id)

    async def visits(self, count: int) -> None:
        """So many, AT_ONCE at a time."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with room:
                await self.visit()

        await asyncio.gather(*(one() for _ in range(count)))

    async def visit(self) -> None:
        """Come, run, go."""
        end = self.draw.choice(ENDS)
        self.ends[end] += 1
        self.numbers += 1
        folder = self.folder / f"visit-{self.numbers}"
        stack = AsyncExitStack()
        invite = self.invite()
        block = await self.blocks.get()
        try:
            try:
                stage, plan = await self._stage(stack, invite, block, folder)
                guest, engine = await self._guest(stack, invite, plan, folder)
                await self._run(engine, guest, stage, end)
            except SwarmError as error:
                self.runs[f"{type(error).__name__}: {str(error)[:60]}"] += 1
                return
            if end == "revoked" and invite.token is not None:
                self.host.gossip.revoke(invite.token)
            if end == "silent":
                stage.fall_silent()
                guest.fall_silent()
                self.silent.append(stack)
                stack = AsyncExitStack()
        finally:
            await _close(stack)
            while len(self.silent) > MOST_SILENT:
                await _close(self.silent.pop(0))
            self.blocks.put_nowait(block)

    async def rest(self) -> None:
        """Let those go that are silent."""
        while self.silent:
            await _close(self.silent.pop())

    def invite(self) -> Invite:
        """One of its own for each visit, so that it can be revoked alone."""
        gossip = self.host.gossip
        model = bytes.fromhex(self.checkpoint.manifest.digest)
        return make_invite(gossip.membership, model, "tiny", [(self.id, [self.where])], time.time())

    async def party(self, stack: AsyncExitStack, invite: Invite, role: str, again: bool = False) -> Party:
        """Enter by the invite, or under a key that was here before."""
        before = self.draw.choice(self.known) if again and self.known else None
        identity = before[0] if before is not None else Identity.generate()
        board = await stack.enter_async_context(Switchboard(identity, open_kinds=(HELLO, AUDIT)))
        address = await board.listen("127.0.0.1", 0) if role == "node" else None
        welcome, _ = await enter(board, invited(invite, role), invite.members)
        saved = Saved(welcome.membership, welcome.model, welcome.ref, invite.members)
        about = None
        if address is not None:
            self.known = [*self.known, (identity, saved)][-16:]
            about = NodeRecord(
                identity.id, b"", 0, 0, 0, state="serving", addresses=(address,), n_layers=LAYERS,
                layers=(SPLIT, LAYERS), model=bytes.fromhex(self.checkpoint.manifest.digest), dtype="float32",
            )  # fmt: skip
        gossip = await stack.enter_async_context(Gossip(board, saved, about))
        return Party(board, gossip, address)

    async def _stage(
        self, stack: AsyncExitStack, invite: Invite, block: Block, folder: Path
    ) -> tuple[Party, StagePlan]:
        party = await self.party(stack, invite, "node", self.draw.random() < AGAIN)
        board, manifest = party.board, self.checkpoint.manifest
        assert party.address is not None
        log = open_log(folder / "stage", board.id)
        hardware = receipts.Hardware("Test CPU", "cpu", 8 << 30, "", "Test CPU", 2, None, {"1": 900})
        notary = ReceiptSigner(
            log.author(board.identity.sign), log, SOFTWARE, manifest.digest, manifest.weights_digest, hardware,
            rows=RowStore(folder / "rows"), context=manifest.context,
        )  # fmt: skip
        stack.callback(notary.close)
        hosted = HostedModel(manifest.digest, block, KVPool(block, 64 << 20), "cpu", board.id)
        server = StageServer(hosted, board, connector=MemberConnector(board, party.gossip), notary=notary)
        board.watch(server)
        for kind, handler in {**server.handlers(), **NotaryServer(notary, party.gossip).handlers()}.items():
            board.handle(kind, handler)
        task = asyncio.create_task(server.run())
        stack.push_async_callback(_ended, task)
        return party, StagePlan(board.id, (party.address,), block.first, block.last)

    async def _guest(
        self, stack: AsyncExitStack, invite: Invite, plan: StagePlan, folder: Path
    ) -> tuple[Party, RunEngine]:
        party = await self.party(stack, invite, "guest")
        board, manifest = party.board, self.checkpoint.manifest
        log = open_log(folder / "guest", board.id)
        notary = ReceiptSigner(log.author(board.identity.sign), log, SOFTWARE, manifest.digest, manifest.weights_digest)
        stack.callback(notary.close)
        head = StagePlan(self.id, (self.where,), 0, SPLIT)
        engine = RunEngine(
            board,
            TargetFacts(manifest.digest, manifest.context, frozenset(), Decodes(lambda ids: " ".join(map(str, ids)))),
            FixedRouter(lambda: [head, plan], LAYERS, "float32"),
            Suffixes(),
            MemberConnector(board, party.gossip),
            ReceiptPlan(folder / "receipts", notary, manifest.model, LAYERS, Watching(board, (), "float32")),
        )
        for kind, handler in engine.handlers().items():
            board.handle(kind, handler)
        await stack.enter_async_context(engine)
        return party, engine

    async def _run(self, engine: RunEngine, guest: Party, stage: Party, end: str) -> None:
        prompt = tuple(self.draw.randrange(90) for _ in range(self.draw.randint(2, 60)))
        mode: Any = self.draw.choice(("plain", "chain", "tree", "stream"))
        request = RunRequest(
            prompt, max_tokens=self.draw.randint(2, 12), speculation=mode, ignore_eos=True, patience_s=1.0
        )
        cut_at = self.draw.randint(1, 4) if end == "cut" else 0
        seen = 0
        async with asyncio.timeout(RUN_S), aclosing(engine.run(request)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    seen += len(event.tokens)
                    if cut_at and seen >= cut_at:
                        self.draw.choice((guest, stage)).vanish()
                        if self.draw.random() < 0.5:
                            guest.vanish()
                            stage.vanish()
                        self.runs["cut"] += 1
                        return
                elif isinstance(event, Finished):
                    self.runs[event.result.finish_reason] += 1


async def _close(stack: AsyncExitStack) -> None:
    with suppress(PeerError, TimeoutError):
        await stack.aclose()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def crowd(folder: Path, lie: str, seed: int = 1) -> AsyncIterator[Crowd]:
    """A real node of the first layers, and everything for visits to it."""
    model = make_model(folder / "model", layers=LAYERS)
    async with nest(model, folder / "nodes") as nodes, AsyncExitStack() as stack:
        node = await nodes.add((0, SPLIT), lie=lie)
        checkpoint: Any = open_model(str(model), ModelStore(folder / "models"))
        blocks: asyncio.Queue[Block] = asyncio.Queue()
        for _ in range(AT_ONCE):
            blocks.put_nowait(load_block(checkpoint, SPLIT, LAYERS, torch.device("cpu"), torch.float32))
        found = Crowd(node, checkpoint, blocks, folder / "visits", None, random.Random(seed))  # type: ignore[arg-type]
        found.host = await found.party(stack, parse_invite_untrusted(node.ready["invite"]), "node")
        yield found
        await found.rest()


def grown(before: Mapping[str, Any], after: Mapping[str, Any], least: int) -> list[str]:
    """Lines: what has at least `least` more than it had."""
    lines = []
    for what in ("containers", "types", "traced", "maps", "tasks", "loops"):
        old, new = before.get(what, {}), after.get(what, {})
        more = {name: new[name] - old.get(name, 0) for name in new}
        floor = {"traced": 20_000, "maps": 200_000, "tasks": 1, "loops": 3}.get(what, least)
        kept = sorted(((count, name) for name, count in more.items() if count >= floor), reverse=True)
        lines += [f"  {what}: {name} {count:+d} = {new[name]}" for count, name in kept[:25]]
    return lines


def shortly(seen: Mapping[str, Any]) -> str:
    """The memory of a look in a line."""
    memory, trimmed = seen["memory"], seen["trimmed"]
    mb = {name: value / 1e6 for name, value in memory.items()}
    asleep, collected = seen["uncollected"], seen["collected"]
    ages = [each["collections"] for each in collected["stats"]]
    return (
        f"{asleep['resident'] / 1e6:.2f} MB and {asleep['blocks']} blocks before {collected['dead']} dead objects were "
        f"collected in {collected['seconds']} s (collections so far {ages}, {collected['frozen']} frozen); then "
        f"{mb['resident']:.2f} MB (own {mb['anonymous']:.2f}, mapped {mb['mapped']:.2f}); after malloc_trim "
        f"{trimmed['resident'] / 1e6:.2f} (own {trimmed['anonymous'] / 1e6:.2f}); malloc used {mb['used']:.2f} free "
        f"{mb['free']:.2f} apart {mb['apart']:.2f}; Python {seen['arenas']} arenas, {seen['blocks']} blocks; "
        f"{memory['descriptors']} descriptors, {memory['threads']} threads"
    )


async def compare(rounds: int, visits: int, lie: str, settle_s: float) -> None:
    """Rounds of visits, with a look after each."""
    with tempfile.TemporaryDirectory(prefix="visitors-") as folder:
        async with crowd(Path(folder), lie) as found:
            seen: list[Mapping[str, Any]] = []
            for number in range(rounds + 1):
                begun = time.monotonic()
                if number:
                    await found.visits(visits)
                    await found.rest()
                spent = time.monotonic() - begun
                await asyncio.sleep(settle_s)
                seen.append(await look(found.node))
                print(f"round {number}: {spent:.0f} s, {shortly(seen[-1])}", flush=True)
                if number > 1:
                    print("\n".join(grown(seen[-2], seen[-1], max(8, visits // 20))), flush=True)
            print("from round 1 to the last:")
            print("\n".join(grown(seen[1], seen[-1], max(8, visits // 10))))
            print(dict(found.ends), dict(found.runs))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.visitors", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--visits", type=int, default=300, help="in a round")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds between a round and the look after it")
    parser.add_argument("--how", default="forget_soon", choices=["install", "install_traced", "forget_soon"])
    given = parser.parse_args()
    asyncio.run(compare(given.rounds, given.visits, f"tests.soak.inside:{given.how}", given.settle))
    return 0


if __name__ == "__main__":
    sys.exit(main())
