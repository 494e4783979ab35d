"""`swarm.AsyncNode` and `swarm.Node` (`BlockingNode`): a serving node inside a program."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from swarm.base.blocking import Blocking
from swarm.base.config import JoinConfig
from swarm.base.errors import RunError, UsageError
from swarm.base.events import Report, silent
from swarm.base.keywords import check_keywords
from swarm.base.members import MemberOptions, member_of

if TYPE_CHECKING:
    from swarm.node.node import Ready

_MEMBER = frozenset(MemberOptions.__annotations__)


class NodeOptions(MemberOptions, total=False):
    """Keywords of `Node` and `AsyncNode`: those of `swarm join`, as `JoinConfig` describes them; all may be left away.

    layers          [first, last) to hold; default: what the swarm needs most
    kv_bytes, overflow_bytes   in bytes
    listen, advertise, relay_at   (host, port)
    report          is told of downloads, loading and what happens in the swarm
    """

    model: str
    gpu: int | tuple[int, ...]
    threads: int
    layers: tuple[int, int]
    capacity: int
    listen: tuple[str, int]
    advertise: tuple[str, int]
    dtype: str
    weights_as: str
    exact_on_gpu: bool
    kv_bytes: int
    grace_s: float
    open_swarm: bool
    found: bool
    owner: str
    offer_relay: bool
    relay_at: tuple[str, int]
    map_port: bool
    weights: str
    disclose: bool
    overflow_bytes: int
    probe: bool
    recompute: bool
    log: Path
    report: Report


class AsyncNode:
    """A node of a swarm: `async with AsyncNode(model="...") as node: print(node.invite)`.

    Entering waits until it serves, leaving lets open runs end (`grace_s`). `swarm` as for `AsyncClient`: None enters an
    open swarm of the local network, waits for a code to be confirmed where there is another (`swarm admit` here and
    there), or founds one. Computing goes on in threads of its own; the number of threads that
    torch uses is one for the whole process, and the last node to load sets it. Raises SwarmError.
    """

    def __init__(self, swarm: str | Path | None = None, **options: Unpack[NodeOptions]) -> None:
        check_keywords(options, NodeOptions)
        own = {name: value for name, value in options.items() if name not in _MEMBER and name != "report"}
        self._config = JoinConfig(member_of(swarm, options), **own)  # type: ignore[arg-type]
        self._report = options.get("report", silent)
        self._stop = asyncio.Event()
        self._life: asyncio.Task[int] | None = None
        self._ready: Ready | None = None

    async def __aenter__(self) -> Self:
        from swarm.mesh.invite import parse_invite_untrusted

        if self._config.member.invite is not None:
            parse_invite_untrusted(self._config.member.invite)  # before what takes seconds to import
        from swarm.node.node import serve_block

        if self._life is not None:
            raise UsageError("expected a node to be entered once, found it entered already; make another one")
        serves: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(serve_block(self._config, serves.set_result, self._report, self._stop))
        either: list[asyncio.Future[int] | asyncio.Future[Ready]] = [self._life, serves]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._end()
            raise
        if not serves.done():
            await self._life  # raises what it ended with
            raise RunError("the node ended before it served; its report says why")
        self._ready = serves.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def ready(self) -> Ready:
        """Where it serves what: node id, addresses, layers, device."""
        if self._ready is None:
            raise UsageError(
                "expected the node to be entered, found it not serving yet; write `with Node(...) as node:`"
            )
        return self._ready

    @property
    def invite(self) -> str:
        """What others enter this node's swarm with."""
        return self.ready.invite

    @property
    def layers(self) -> tuple[int, int]:
        """[first, last) that it held when it began to serve."""
        return self.ready.layers

    async def wait(self) -> None:
        """Until the node ends. Raises RunError when it cannot go on, such as when its key is used elsewhere."""
        if self._life is None:
            raise UsageError("expected the node to be entered, found it not serving yet")
        await asyncio.shield(self._life)

    async def _end(self) -> None:
        self._stop.set()
        if self._life is not None:
            await self._life


class BlockingNode(Blocking[AsyncNode]):
    """A node for programs without an event loop: `with Node(model="...") as node: print(node.invite)`.

    Arguments and errors are those of `AsyncNode`.
    """

    def __init__(self, swarm: str | Path | None = None, **options: Unpack[NodeOptions]) -> None:
        super().__init__(AsyncNode(swarm, **options))

    @property
    def ready(self) -> Ready:
        """Where it serves what: node id, addresses, layers, device."""
        return self._inner.ready

    @property
    def invite(self) -> str:
        """What others enter this node's swarm with."""
        return self._inner.invite

    @property
    def layers(self) -> tuple[int, int]:
        """[first, last) that it held when it began to serve."""
        return self._inner.layers

    def wait(self) -> None:
        """Until the node ends. Raises RunError when it cannot go on."""
        self._background.call(self._inner.wait())
