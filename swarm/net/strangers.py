"""Who proved a key and has not been admitted: how many of them, from where, for how long."""

from __future__ import annotations

import asyncio
from collections import Counter

from swarm.base.hosts import host_key
from swarm.net.channel.limits import ChannelLimits
from swarm.net.members import Members
from swarm.net.peer import Peer


class Strangers:
    """The strangers among a switchboard's peers. `members`: who was admitted on other grounds meanwhile."""

    def __init__(self, limits: ChannelLimits, members: Members) -> None:
        self._limits, self._members = limits, members
        self._hosts: dict[Peer, str] = {}
        self._count: Counter[str] = Counter()
        self._timers: dict[Peer, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._hosts)

    def add(self, peer: Peer) -> None:
        """One more; where it is one too many, the oldest of its host, or of all, is closed."""
        host = host_key(peer.address[0])
        if self._count[host] >= self._limits.strangers_per_host:
            next(other for other, where in self._hosts.items() if where == host).drop("another stranger took its place")
        elif len(self._hosts) >= self._limits.strangers:
            next(iter(self._hosts)).drop("another stranger took its place")
        self._hosts[peer] = host
        self._count[host] += 1
        peer.on_admitted = self.discard
        self._watch(peer, -1)

    def discard(self, peer: Peer) -> None:
        """It was admitted, or is gone."""
        host = self._hosts.pop(peer, None)
        if host is None:
            return
        self._timers.pop(peer).cancel()
        self._count[host] -= 1
        if not self._count[host]:
            del self._count[host]

    def _watch(self, peer: Peer, sent: int) -> None:
        loop = asyncio.get_running_loop()
        self._timers[peer] = loop.call_later(self._limits.stranger_seconds, self._look, peer, sent)

    def _look(self, peer: Peer, sent: int) -> None:
        """Its time is over, unless it is taking what it was allowed to ask for: then it has as much again."""
        taken = peer.sent_bytes - max(0, sent)
        if self._members.admitted(peer.id):
            peer.admit()
        elif peer.served and taken >= self._limits.stranger_bytes:
            self._watch(peer, peer.sent_bytes)
        else:
            peer.drop(f"no hello within {self._limits.stranger_seconds:g} s")
