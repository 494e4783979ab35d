"""The options that say which paths a node takes and offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.base.config import check_invite, read_invite
from swarm.base.errors import UsageError
from swarm.cli.common import member_config
from swarm.cli.join import join_config
from swarm.cli.main import build_parser


def test_relays_are_used_and_not_offered_unless_told() -> None:
    config = join_config(build_parser().parse_args(["join"]))
    assert (config.member.relay, config.member.punch) == (True, True)
    assert (config.offer_relay, config.relay_at) == (False, None)


def test_relays_are_refused_and_offered_when_told() -> None:
    words = ["join", "--relay", "--relay-at", "relay.example:443", "--no-relay"]
    config = join_config(build_parser().parse_args(words))
    assert not config.member.relay
    assert (config.offer_relay, config.relay_at) == (True, ("relay.example", 443))
    asker = build_parser().parse_args(["generate", "--no-relay", "--no-punch", "hello"])
    assert (member_config(asker).relay, member_config(asker).punch) == (False, False)


def test_a_proxy_without_a_relay_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="--relay with --relay-at"):
        join_config(build_parser().parse_args(["join", "--relay-at", "relay.example:443"]))


def test_a_file_with_what_join_printed_is_an_invite(tmp_path: Path) -> None:
    file = tmp_path / "printed"
    lines = '  swarm join --swarm swarm1abc\n  swarm generate --swarm swarm1abc "your prompt"\n'
    for text, found in ((lines, "swarm1abc"), ("swarm1abc\n def\n", "swarm1abc\n def"), (" swarm1abc \n", "swarm1abc")):
        file.write_text(text)
        assert read_invite(str(file)) == found
    two = "swarm join --swarm swarm1abc\nswarm join --swarm swarm1def"
    assert read_invite(lines) == "swarm1abc" and read_invite(two) == two
    with pytest.raises(UsageError, match="expected an invite that begins with swarm1"):
        check_invite(read_invite(two))
