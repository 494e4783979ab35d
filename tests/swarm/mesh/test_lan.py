"""Announcements on the local network: what they hold, garbage, and one real round over loopback multicast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.mesh.lan import LanNode, announce, find, parse_txt_untrusted, txt_of
from tests.swarm.mesh.make import ANN, BOB, MEMBERSHIP, MODEL

NODE = LanNode(MEMBERSHIP.swarm, ANN.id, MODEL, True)


def txt(**changes: object) -> dict[bytes, bytes | None]:
    return {name.encode(): value.encode() for name, value in {**txt_of(NODE), **changes}.items()}  # type: ignore[attr-defined]


def test_an_announcement_comes_back_and_holds_no_secret() -> None:
    found = parse_txt_untrusted(txt(), ["192.0.2.1", "fe80::1%3", "2001:db8::1"], 4242)
    assert found == LanNode(MEMBERSHIP.swarm, ANN.id, MODEL, True, (("192.0.2.1", 4242), ("2001:db8::1", 4242)))
    shown = b"".join(key + (value or b"") for key, value in txt().items())
    secret = MEMBERSHIP.prove(BOB.id)
    assert secret.hex().encode() not in shown and secret not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"v": "2"},
        {"swarm": "zz"},
        {"swarm": "00"},
        {"node": "x" * 52},
        {"model": "00"},
        {"open": "yes"},
        {"node": "é" * 52},
    ],
)
def test_entries_of_another_form_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(PeerError):
        parse_txt_untrusted(txt(**change), ["192.0.2.1"], 1)


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"swarm", b"node", b"model", b"open"]) | st.binary(max_size=4),
        st.none() | st.binary(max_size=200),
    ),
    st.lists(st.text(max_size=20), max_size=3),
    st.none() | st.integers(-1, 70_000),
)
def test_garbage_is_refused_with_one_error_type(
    found: dict[bytes, bytes | None], addresses: list[str], port: int | None
) -> None:
    with pytest.raises(PeerError):
        parse_txt_untrusted(found, addresses, port)
    try:
        parse_txt_untrusted(txt(), addresses, port)
    except PeerError:
        pass


async def test_a_node_is_found_where_there_is_multicast() -> None:
    loopback = ["127.0.0.1"]
    async with announce(NODE, 4567, loopback, loopback) as announced:
        if not announced.heard:
            pytest.skip("no multicast on this machine")
        found = await find(10.0, enough=1, interfaces=loopback)
        if not found:
            pytest.skip("multicast does not come back on this machine")
        assert found == [LanNode(MEMBERSHIP.swarm, ANN.id, MODEL, True, (("127.0.0.1", 4567),))]
        await announced.tell(["127.0.0.2", "a.example.org"])  # the machine moved; a name is no address
        moved = await find(10.0, enough=1, interfaces=loopback)
        assert [node.addresses for node in moved] == [(("127.0.0.2", 4567),)]
        await announced.tell(["a.example.org"])
        assert not announced.heard


async def test_without_multicast_nothing_is_found_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("swarm.mesh.lan.AsyncZeroconf", refuse)
    async with announce(NODE, 4567, ["127.0.0.1"]) as announced:
        assert announced.heard is False
    assert await find(0.1) == []
