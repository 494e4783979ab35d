"""Invites and the door they open: membership, tokens, revocations, hellos."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import PeerError
from swarm.mesh.hello import Hello, answer_hello, hello_message, invited, parse_hello_untrusted, parse_welcome_untrusted
from swarm.mesh.invite import Invite, make_invite, parse_invite_untrusted, qr_text, read_token_untrusted, token_parts
from swarm.mesh.membership import InviteError, Ledger, Membership, check_token, say_ago
from swarm.net.nodeid import NodeId
from tests.swarm.mesh.make import ANN, BOB, EVE, MEMBERSHIP, MODEL, NOW

HERE = [(ANN.id, [("198.51.100.4", 7000), ("2001:db8::4", 7000)])]


def invite(once: bool = False, expires_s: int = 3600, membership: Membership = MEMBERSHIP) -> Invite:
    return make_invite(membership, MODEL, "smollm2", HERE, NOW, expires_s, once)


def knock(
    invite_: Invite,
    node: NodeId = BOB.id,
    ledger: Ledger | None = None,
    here: NodeId = ANN.id,
    now: float = NOW,
    role: str = "node",
    membership: Membership = MEMBERSHIP,
) -> tuple[Membership, Ledger]:
    """The whole door: call, answer, what the caller makes of it."""
    asked = parse_hello_untrusted(hello_message(invited(invite_, role)).header)
    answer, after = answer_hello(asked, node, here, membership, ledger or Ledger(), MODEL, "smollm2", now)
    return parse_welcome_untrusted(answer.header, invite_.swarm, node, ANN.id).membership, after


def test_an_invite_survives_how_people_pass_it_on() -> None:
    text = invite().text()
    assert text.startswith("swarm1") and text.isalnum() and len(text) < 300
    wrapped = f"  {text[:40].upper()}\n   {text[40:]} \t\n"
    assert (
        parse_invite_untrusted(wrapped)
        == parse_invite_untrusted(text)
        == Invite(
            MEMBERSHIP.swarm, MODEL[:16], "smollm2", ((ANN.id, tuple(HERE[0][1])),), parse_invite_untrusted(text).token
        )
    )


@given(st.integers(6, 10**6), st.characters(codec="ascii"))
def test_a_changed_character_is_found(where: int, letter: str) -> None:
    text = invite().text()
    at = 6 + where % (len(text) - 6)
    damaged = text[:at] + letter + text[at + 1 :]
    if "".join(damaged.split()).lower() == text:
        return
    with pytest.raises(InviteError, match="damaged on the way|expected an invite"):
        parse_invite_untrusted(damaged)


def test_a_changed_last_character_is_found_where_it_holds_spare_bits() -> None:
    text = invite().text()
    for letter in "abcdefghijklmnopqrstuvwxyz234567".replace(text[-1], ""):
        with pytest.raises(InviteError, match="damaged on the way"):
            parse_invite_untrusted(text[:-1] + letter)


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: "swarm1" + b.hex()))
def test_garbage_is_refused_in_words(text: str) -> None:
    with pytest.raises(InviteError, match="invite"):
        parse_invite_untrusted(text)


def test_mistakes_are_told_apart() -> None:
    with pytest.raises(InviteError, match="begins with swarm1, found 'https://example.com'"):
        parse_invite_untrusted("https://example.com")
    with pytest.raises(InviteError, match="checksum"):
        parse_invite_untrusted(invite().text()[:-8])
    with pytest.raises(InviteError, match="at most 2000 characters"):
        parse_invite_untrusted("swarm1" + "a" * 10_000)
    with pytest.raises(
        InviteError, match="the invite is for the model smollm2 .*, found other .*; join with --model smollm2"
    ):
        invite().require_model(b"other" * 6 + b"!!", "other")
    invite().require_model(MODEL, "smollm2")
    with pytest.raises(InviteError, match="the invite expired 1 hour ago; ask a member for a new one: swarm invite"):
        invite().require_fresh(NOW + 7200)
    invite().require_fresh(NOW)
    assert InviteError.exit_code == 2 and issubclass(InviteError, PeerError)


def test_what_cannot_be_invited_to_is_refused() -> None:
    with pytest.raises(InviteError, match="1 second to 90 days"):
        invite(expires_s=10**9)
    with pytest.raises(InviteError, match="no member with an address"):
        make_invite(MEMBERSHIP, MODEL, "m", [(ANN.id, [])], NOW)
    guest, _ = knock(invite(), role="guest")
    with pytest.raises(InviteError, match="only a member can invite; this machine joined as a guest"):
        invite(membership=guest)


def test_a_valid_invite_admits_and_hands_over_membership() -> None:
    joined, _ = knock(invite())
    assert joined.secret == MEMBERSHIP.secret and joined.proof == MEMBERSHIP.prove(BOB.id)
    assert MEMBERSHIP.proves(BOB.id, joined.proof) and not MEMBERSHIP.proves(EVE.id, joined.proof)
    knock(make_invite(joined, MODEL, "smollm2", HERE, NOW), EVE.id)  # every member can invite
    guest, _ = knock(invite(), role="guest")
    assert guest.secret is None and guest.proof == MEMBERSHIP.prove(BOB.id)


def test_expired_altered_foreign_and_missing_tokens_open_nothing() -> None:
    with pytest.raises(InviteError, match="expired 2 hours ago"):
        knock(invite(), now=NOW + 3 * 3600)
    good = invite()
    assert good.token is not None
    for bad in (replace(good.token, expires=good.token.expires + 1), replace(good.token, mac=bytes(16))):
        with pytest.raises(InviteError, match="not issued by a member"):
            knock(replace(good, token=bad))
    with pytest.raises(InviteError, match="admits by invite"):
        knock(replace(good, token=None))
    other = Membership.found(EVE.id)
    with pytest.raises(InviteError, match="another swarm"):
        knock(make_invite(other, MODEL, "smollm2", HERE, NOW))
    with pytest.raises(InviteError, match="not issued by a member"):
        knock(replace(good, token=other.issue(NOW + 60)))
    with pytest.raises(InviteError, match=r"serves smollm2 \(digest 000102030405\), found a hello for digest"):
        knock(replace(good, model=b"another model..."))


def test_an_open_swarm_needs_no_token() -> None:
    open_swarm = Membership.found(ANN.id, open_swarm=True)
    text = invite(membership=open_swarm).text()
    assert parse_invite_untrusted(text).token is None
    joined, _ = knock(parse_invite_untrusted(text), membership=open_swarm)
    assert joined.open and joined.secret == open_swarm.secret
    assert invite(once=True, membership=open_swarm).token is not None


def test_a_revoked_invite_opens_nothing_until_it_would_have_expired() -> None:
    good = invite()
    assert good.token is not None
    notice = MEMBERSHIP.revoke(good.token)
    assert MEMBERSHIP.genuine(notice) and not MEMBERSHIP.genuine(replace(notice, id=bytes(8)))
    ledger = Ledger().revoking(notice, NOW)
    with pytest.raises(InviteError, match="was revoked"):
        knock(good, ledger=ledger)
    knock(invite(), ledger=ledger)
    later = ledger.revoking(MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW + 99_999)), NOW + 7200)
    assert good.token.id not in later.revoked  # forgotten: it has expired by itself


def test_a_single_use_invite_works_once_where_it_was_issued() -> None:
    good = invite(once=True)
    with pytest.raises(InviteError, match="redeemed where it was issued"):
        knock(good, here=EVE.id)
    _, used = knock(good)
    with pytest.raises(InviteError, match="for one use and is used"):
        knock(good, EVE.id, used)
    knock(good, BOB.id, used)  # the same node again: its answer may have been lost


def test_who_was_admitted_comes_back_by_proof() -> None:
    joined, _ = knock(invite())
    again = Hello(MEMBERSHIP.swarm, b"", "node", joined.proof, None)
    answer, _ = answer_hello(again, BOB.id, ANN.id, MEMBERSHIP, Ledger(), MODEL, "m", NOW + 10**9)
    assert parse_welcome_untrusted(answer.header, MEMBERSHIP.swarm, BOB.id, ANN.id).membership == joined
    with pytest.raises(InviteError, match="admits by invite"):
        answer_hello(again, EVE.id, ANN.id, MEMBERSHIP, Ledger(), MODEL, "m", NOW)


def test_an_impostor_at_the_address_is_found() -> None:
    answer, _ = answer_hello(invited(invite(), "node"), BOB.id, ANN.id, MEMBERSHIP, Ledger(), MODEL, "m", NOW)
    for change in (
        {"secret": b"x" * 32},
        {"welcome": bytes(16)},
        {"proof": b""},
        {"open": 1},
        {"model": b"x"},
        {"ref": None},
    ):
        with pytest.raises(PeerError):
            parse_welcome_untrusted({**answer.header, **change}, MEMBERSHIP.swarm, BOB.id, ANN.id)
    with pytest.raises(InviteError, match="^no$"):
        parse_welcome_untrusted({"refused": "n\no"}, MEMBERSHIP.swarm, BOB.id, ANN.id)


values = st.recursive(st.none() | st.integers() | st.binary(max_size=40) | st.text(max_size=9), st.lists, max_leaves=8)


@given(
    st.fixed_dictionaries(
        {}, optional={n: values for n in ("swarm", "model", "role", "proof", "token", "refused", "ref")}
    )
)
def test_garbage_hellos_are_refused(header: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        parse_hello_untrusted(header)
    with pytest.raises(PeerError):
        parse_welcome_untrusted(header, MEMBERSHIP.swarm, BOB.id, ANN.id)


def test_tokens_travel_in_hellos() -> None:
    for once in (False, True):
        token = invite(once).token
        assert read_token_untrusted(token_parts(token)) == token
    assert token_parts(None) is None


def test_a_ledger_that_is_full_refuses_rather_than_forgets_a_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.mesh.membership.MAX_REMEMBERED", 2)
    ledger = Ledger()
    for _ in range(2):
        token = MEMBERSHIP.issue(NOW + 60, ANN.id)
        ledger = ledger.using(token, BOB.id, NOW)
    with pytest.raises(InviteError, match="remembers no more"):
        ledger.using(MEMBERSHIP.issue(NOW + 60, ANN.id), BOB.id, NOW)
    assert len(ledger.using(MEMBERSHIP.issue(NOW + 99, ANN.id), BOB.id, NOW + 61).used) == 1
    for n in range(4):
        ledger = ledger.revoking(MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW + n + 1)), NOW)
    assert sorted(ledger.revoked.values()) == [NOW + 3, NOW + 4]


def test_spans_are_said_for_people() -> None:
    spans = {0.2: "a moment", 1: "1 second", 59: "59 seconds", 60: "1 minute", 7300: "2 hours", 10**6: "11 days"}
    assert {s: say_ago(s) for s in spans} == spans


def test_a_qr_code_holds_the_invite() -> None:
    drawn = qr_text(invite().text())
    lines = drawn.splitlines()
    assert len(lines) > 20 and len({len(line) for line in lines}) == 1 and set(drawn) <= set("\n █▀▄\xa0")


def test_check_token_names_the_reason_in_order() -> None:
    token = MEMBERSHIP.issue(NOW - 5)
    with pytest.raises(InviteError, match="expired 5 seconds ago"):
        check_token(token, BOB.id, ANN.id, MEMBERSHIP, Ledger(), NOW)
