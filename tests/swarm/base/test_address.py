from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import format_address, parse_address_untrusted
from swarm.base.errors import PeerError

HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z]{1,10}(\.[a-z]{2,5})?", fullmatch=True),
)


@given(HOSTS, st.integers(1, 65535))
def test_round_trip(host: str, port: int) -> None:
    assert parse_address_untrusted(format_address((host, port))) == (host, port)


@given(st.one_of(st.text(), st.none(), st.integers(), st.binary()))
def test_anything_else_raises_the_one_error(text: object) -> None:
    try:
        host, port = parse_address_untrusted(text)
    except PeerError:
        return
    assert host and 1 <= port <= 65535


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a:", "a", "a:0", "a:65536", "a:-1", "a:1:2", "::1:80", "[::1]", "[1.2.3.4]:5", "a b:1", "a:1\n", "a:٣"],
)
def test_refused(text: str) -> None:
    with pytest.raises(PeerError, match=r"expected a"):
        parse_address_untrusted(text)


def test_port_zero_only_where_it_is_meant() -> None:
    assert parse_address_untrusted("0.0.0.0:0", lowest_port=0) == ("0.0.0.0", 0)
