"""A swarm of honest node processes, and in this process a requester that may be anything but honest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from receipts.check.verdict import Level, Verdict
from receipts.check.verify import Options
from receipts.format.document import secrets_untrusted
from receipts.format.salt import Secret
from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.recheck.check import CheckConfig, check
from swarm.run.api import CommittedTokens, Finished, RunRequest, RunResult
from swarm.run.ring_client import RingLink
from tests.ring.nest import Nest, nest

SPANS = [(0, 4), (4, 8), (8, 12)]
PROMPT = tuple(range(7, 31))
OTHER = tuple(range(60, 84))
"""As many other tokens."""


@dataclass
class Arena:
    """`requester` in this process, `nodes` in their own; nothing is patched in those."""

    nodes: Nest
    requester: Requester
    member: MemberConfig

    async def run(self, request: RunRequest, seen: Callable[[RingLink, int], None] = lambda link, n: None) -> RunResult:
        """One run to its end; `seen` is told its link and how many tokens have come."""
        count = 0
        async with aclosing(self.requester.run(request)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    count += len(event.tokens)
                    seen(next(iter(self.requester.desk.links.values())), count)
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("the run has no end")

    async def audit(
        self,
        receipt: str | None,
        frames: int = 60,
        secrets: tuple[Secret, ...] | None = None,
        replay: bool = False,
        via: str | None = None,
    ) -> Verdict:
        """What `swarm verify --audit` finds, with the requester's secrets unless others are given."""
        path = Path(str(receipt))
        if secrets is None:
            secrets = secrets_untrusted(path.with_suffix(".secrets.json").read_bytes())
        member = MemberConfig(
            self.member.state.parent / "verifier", self.member.models, invite=self.member.invite, lan=False, punch=False
        )
        config = CheckConfig(
            models=member.models, options=Options(required=Level.SAMPLED, secrets=secrets), model=str(self.nodes.model),
            audit=frames, member=member, replay=replay, via=via,
        )  # fmt: skip
        return await check(path.read_bytes(), config)


@asynccontextmanager
async def arena(
    model: Path,
    state: Path,
    spans: Sequence[tuple[int, int]] = SPANS,
    lies: Sequence[str] = (),
    keep_s: float = 0.0,
    arguments: Sequence[str] = (),
) -> AsyncIterator[Arena]:
    """Nodes that hold `spans`, all with `arguments`; `lies` in the order of the nodes, "" or none for honest ones."""
    async with nest(model, state / "nodes") as nodes:
        for index, span in enumerate(spans):
            await nodes.add(span, *arguments, lie=lies[index] if index < len(lies) else "")
        member = MemberConfig(state / "requester", nodes.models, invite=nodes.invite, lan=False, punch=False)
        config = RequesterConfig(member, draft="suffix", keep_s=keep_s)
        async with await Requester.connect(config) as requester:
            yield Arena(nodes, requester, member)
