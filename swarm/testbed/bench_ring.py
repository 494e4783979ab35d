"""The ring that `swarm bench speculation` measures: real node processes here, one requester in this process."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from swarm.base.config import MemberConfig
from swarm.base.errors import RunError
from swarm.base.events import Report
from swarm.run.api import Draft, Finished, RunRequest, Speculation
from swarm.testbed.bench import Asker
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

if TYPE_CHECKING:
    from swarm.client.client import Requester


@dataclass(frozen=True)
class RingSettings:
    """How the measured ring is made: `layers` of the model over `nodes` stages, keys and logs in state folders."""

    swarm: LocalSwarm
    models: Path
    n_layers: int
    nodes: int = 3
    draft_model: str | None = None
    draft_gpu: int | None = None


def ring_state(state: Path, model: str | None, rtt_ms: float) -> Path:
    """Folder of the keys of one ring: nodes that held another model would go back to its swarm."""
    return state / f"rtt{rtt_ms:g}-{hashlib.sha256((model or '').encode()).hexdigest()[:8]}"


@contextlib.asynccontextmanager
async def open_ring(settings: RingSettings, rtt_ms: float, report: Report) -> AsyncIterator[Asker]:
    """Nodes, links and requester for one distance; everything is stopped at the end."""
    from swarm.client.client import Requester, RequesterConfig

    state = ring_state(settings.swarm.state, settings.swarm.model, rtt_ms)
    swarm = replace(settings.swarm, rtt_ms=rtt_ms, state=state)
    async with local_ring(swarm, split_layers(settings.n_layers, settings.nodes), report) as ring:
        member = MemberConfig(
            state=ring.requester_state, models=settings.models, invite=ring.invite, lan=False, punch=False
        )
        config = RequesterConfig(member, draft_model=settings.draft_model, draft_gpu=settings.draft_gpu, draft="auto")
        async with await Requester.connect(config, report) as requester:
            yield RingAsker(requester)


class RingAsker:
    """Asks one requester, greedily. `receipts`: whether runs leave one; the cost of that is part of a real run."""

    def __init__(self, requester: Requester, receipts: bool = True) -> None:
        self.requester = requester
        self.receipts = receipts

    async def __call__(self, prompt: str, speculation: str, draft: str, max_tokens: int) -> Mapping[str, Any]:
        request = RunRequest(
            prompt_ids=tuple(self.requester.encode_chat([{"role": "user", "content": prompt}])),
            max_tokens=max_tokens,
            ignore_eos=True,
            speculation=cast(Speculation, speculation),
            draft=cast(Draft, draft),
            receipt=self.receipts,
        )
        async with aclosing(self.requester.run(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.result.as_json()
        raise RunError("a benchmark run ended without a result; see the logs of the nodes in the state folder")
