"""Records and helpers that the tests of membership share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarm.mesh.membership import Membership
from swarm.mesh.record import NodeRecord, Signed, sign_record
from swarm.mesh.table import Held
from swarm.net.identity import Identity

NOW = 1_700_000_000
MODEL = bytes(range(32))
ANN, BOB, EVE = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
MEMBERSHIP = Membership.found(ANN)


def record(identity: Identity = ANN, **changes: Any) -> NodeRecord:
    """A full record of `identity` at NOW."""
    plain = NodeRecord(
        node=identity.id,
        swarm=MEMBERSHIP.swarm,
        version=NOW * 1000,
        issued=NOW,
        ttl=60,
        instance=7,
        proof=MEMBERSHIP.prove(identity.id),
        state="serving",
        addresses=(("203.0.113.7", 4242), ("2001:db8::1", 4242)),
        relay=True,
        model=MODEL,
        n_layers=30,
        layers=(0, 10),
        claim=(10, 20),
        device="Ünïversal GPU",
        dtype="bfloat16",
        speed_us=(1000, 1200, 3000),
        overflow=2,
        overflow_us=(9000, 9000, 30000),
        kv_capacity=10**9,
        kv_free=10**8,
        up_kbps=40_000,
        down_kbps=250_000,
        rtts=((b"\x01" * 8, 20_000), (b"\x02" * 8, 41_000)),
        edges=("relay", ""),
        coordinate=(-1000, 2000, 30_000, 500, 200),
        sessions=3,
        queue_us=120,
        owner="ann",
        software="0.1.0",
    )
    return replace(plain, **changes)


def signed(identity: Identity = ANN, **changes: Any) -> Signed:
    """`record`, signed."""
    return sign_record(record(identity, **changes), identity.sign)


def held(name: bytes, version: int = 1, born: float = 0.0, **changes: Any) -> Held:
    """A record in a table, not signed: for the pure parts, which never look at signatures."""
    plain = NodeRecord(name, b"s" * 10, version, 0, 60, addresses=(("10.0.0.1", 1),), state="serving")
    return Held.of(Signed(replace(plain, **changes), b"wire"), born)
