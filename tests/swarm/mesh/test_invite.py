"""Invites and the door they open: membership, tokens, revocations, hellos."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.mesh.admission import FOUNDER_PROOF, MAX_DEPTH, extend_proof
from swarm.mesh.hello import Hello, answer_hello, hello_message, invited, parse_hello_untrusted, parse_welcome_untrusted
from swarm.mesh.invite import (
    Invite,
    make_invite,
    parse_invite_untrusted,
    passed_on,
    qr_text,
    read_token_untrusted,
    token_parts,
)
from swarm.mesh.membership import InviteError, InviteToken, Ledger, Membership, check_token, say_ago
from swarm.mesh.saved import Saved
from swarm.net.identity import Identity
from tests.swarm.mesh.make import ANN, BOB, EVE, MEMBERSHIP, MODEL, NOW

PEOPLE = {person.id: person for person in (ANN, BOB, EVE)}
PROOF = MEMBERSHIP.prove(BOB.id, token=MEMBERSHIP.issue(NOW + 60))
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
    return parse_welcome_untrusted(answer.header, invite_.swarm, PEOPLE[node], ANN.id).membership, after


def test_an_invite_survives_how_people_pass_it_on() -> None:
    text = invite().text()
    assert text.startswith("swarm1") and text.isalnum() and len(text) < 450
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


@given(st.integers(6, 10**6))
def test_what_happened_to_a_damaged_invite_is_said(where: int) -> None:
    text = invite().text()
    at = 7 + where % (len(text) - 7)
    letter = next(one for one in "ab" if one != text[-20])
    for damaged, said in (
        (text[:at], f"its end seems to be missing behind {at} characters"),
        (text + text, "it is there 2 times"),
        (text + "\n  " + text[:at].upper(), "it is there 2 times"),
        (text[:at] + "-" + text[at:], f"'-' at character {at + 1}"),
        (text + "\u00df", f"'\u00df' at character {len(text) + 1}"),
        (text + "aaaaaaaa", "something follows its end"),
        (text[:-20] + letter + text[-19:], "a character is another one"),
    ):
        with pytest.raises(InviteError) as error:
            parse_invite_untrusted(damaged)
        assert said in str(error.value) and str(error.value).startswith("the invite was damaged on the way")


@given(st.text("abcdefghijklmnopqrstuvwxyz234567", max_size=400))
def test_whatever_is_no_invite_is_refused_by_name(body: str) -> None:
    with pytest.raises(InviteError):
        parse_invite_untrusted("swarm1" + body)


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
    with pytest.raises(InviteError, match="its end seems to be missing behind"):
        parse_invite_untrusted(invite().text()[:-8])
    with pytest.raises(InviteError, match="at most 6000 characters"):
        parse_invite_untrusted("swarm1" + "a" * 20_000)
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
    assert joined.charter == MEMBERSHIP.charter and joined.is_member
    assert MEMBERSHIP.proves(BOB.id, joined.proof) and not MEMBERSHIP.proves(EVE.id, joined.proof)
    knock(make_invite(joined, MODEL, "smollm2", HERE, NOW), EVE.id)  # every member can invite
    guest, _ = knock(invite(), role="guest")
    assert not guest.is_member and MEMBERSHIP.proves(BOB.id, guest.proof)
    assert not MEMBERSHIP.proves(BOB.id, guest.proof, "node")
    for act in (lambda: guest.prove(EVE.id), lambda: guest.issue(NOW + 9), lambda: guest.revoke(guest_token())):
        with pytest.raises(InviteError, match="only a member can"):
            act()


def guest_token() -> InviteToken:
    return MEMBERSHIP.issue(NOW + 60, role="guest")


def hello(node: Identity, said: Hello, ledger: Ledger | None = None, now: float = NOW) -> Membership:
    """What the member ANN makes of it, then the caller."""
    answer, _ = answer_hello(said, node.id, ANN.id, MEMBERSHIP, ledger or Ledger(), MODEL, "m", now)
    return parse_welcome_untrusted(answer.header, MEMBERSHIP.swarm, node, ANN.id).membership


def test_a_guest_does_not_become_a_node_by_saying_so() -> None:
    token = guest_token()
    guest = hello(BOB, Hello(MEMBERSHIP.swarm, b"", "guest", None, token))
    assert guest.own.expires == token.expires
    with pytest.raises(InviteError, match="admits by invite"):
        hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", guest.proof, None))
    with pytest.raises(InviteError, match="lets in guests, not nodes"):
        hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", guest.proof, token))
    with pytest.raises(InviteError, match="it has expired"):
        hello(BOB, Hello(MEMBERSHIP.swarm, b"", "guest", guest.proof, None), now=NOW + 61)
    changed = replace(token, role="node")
    with pytest.raises(InviteError, match="not issued by a member"):
        hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", None, changed))


def test_a_guest_that_signs_for_itself_or_others_opens_nothing() -> None:
    guest = hello(BOB, Hello(MEMBERSHIP.swarm, b"", "guest", None, guest_token()))
    forged = extend_proof(guest.proof, BOB, MEMBERSHIP.swarm, EVE.id, "node", 0, ())
    assert not MEMBERSHIP.proves(EVE.id, forged)
    out_of_thin_air = extend_proof(FOUNDER_PROOF, BOB, MEMBERSHIP.swarm, EVE.id, "node", 0, ())
    assert not MEMBERSHIP.proves(EVE.id, out_of_thin_air)
    token = InviteToken(bytes(8), NOW + 60, "node", False, BOB.id, guest.proof, b"")
    for chain in (guest.proof, FOUNDER_PROOF, b""):
        made = replace(token, chain=chain)
        made = replace(made, signature=BOB.sign(made.signed_part(MEMBERSHIP.swarm)))
        with pytest.raises(InviteError, match="not issued by a member"):
            hello(EVE, Hello(MEMBERSHIP.swarm, b"", "node", None, made))


def test_revoking_ends_what_came_of_an_invite_down_to_the_last() -> None:
    first = MEMBERSHIP.issue(NOW + 600)
    bob = hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", None, first))
    minted = bob.issue(NOW + 600)
    eve = hello(EVE, Hello(MEMBERSHIP.swarm, b"", "node", None, minted))
    assert set(eve.own.tokens) == {first.id, minted.id} and bob.own.tokens == (first.id,)
    grandchild = eve.issue(NOW + 600)
    ledger = Ledger().revoking([MEMBERSHIP.revoke(first)], MEMBERSHIP, NOW)
    for proof, person in ((bob.proof, BOB), (eve.proof, EVE)):
        with pytest.raises(InviteError, match="counts no more: the invite that it came of was revoked"):
            hello(person, Hello(MEMBERSHIP.swarm, b"", "node", proof, None), ledger)
    for token in (minted, grandchild, bob.issue(NOW + 600)):
        with pytest.raises(InviteError, match="no member any more"):
            hello(Identity.generate(), Hello(MEMBERSHIP.swarm, b"", "guest", None, token), ledger)
    late = 10**9  # and for ever, since a node's proof has no end
    with pytest.raises(InviteError, match="was revoked"):
        after = ledger.revoking([MEMBERSHIP.revoke(guest_token())], MEMBERSHIP, NOW + late)
        hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", bob.proof, None), after, NOW + late)
    again = hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", bob.proof, MEMBERSHIP.issue(NOW + 600)), ledger)
    assert first.id not in again.own.tokens  # a fresh invite forgives


def test_who_was_revoked_revokes_nobody() -> None:
    first, innocent = MEMBERSHIP.issue(NOW + 600), MEMBERSHIP.issue(NOW + 600)
    bob = hello(BOB, Hello(MEMBERSHIP.swarm, b"", "node", None, first))
    ledger = Ledger().revoking([MEMBERSHIP.revoke(first)], MEMBERSHIP, NOW)
    assert ledger.revoking([bob.revoke(innocent)], MEMBERSHIP, NOW).revoked == ledger.revoked
    assert innocent.id in Ledger().revoking([bob.revoke(innocent)], MEMBERSHIP, NOW).revoked


def test_a_chain_that_is_too_long_is_refused_in_words() -> None:
    member = MEMBERSHIP
    with pytest.raises(PeerError, match="members stand between the founder and this one"):
        for _ in range(MAX_DEPTH + 1):
            person = Identity.generate()
            proof = member.prove(person.id, token=member.issue(NOW + 60))
            assert MEMBERSHIP.proves(person.id, proof, "node")
            member = Membership.accept_untrusted(MEMBERSHIP.swarm, person, MEMBERSHIP.charter, False, proof)


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_no_changed_bit_of_a_proof_is_taken(where: int, bit: int) -> None:
    proof = bytearray(PROOF)
    proof[where % len(proof)] ^= 1 << bit
    assert not MEMBERSHIP.proves(BOB.id, bytes(proof)) and MEMBERSHIP.proves(BOB.id, PROOF, "node")


def test_expired_altered_foreign_and_missing_tokens_open_nothing() -> None:
    with pytest.raises(InviteError, match="expired 2 hours ago"):
        knock(invite(), now=NOW + 3 * 3600)
    good = invite()
    assert good.token is not None
    for bad in (replace(good.token, expires=good.token.expires + 1), replace(good.token, signature=bytes(64))):
        with pytest.raises(InviteError, match="not issued by a member"):
            knock(replace(good, token=bad))
    with pytest.raises(InviteError, match="admits by invite"):
        knock(replace(good, token=None))
    other = Membership.found(EVE)
    with pytest.raises(InviteError, match="another swarm"):
        knock(make_invite(other, MODEL, "smollm2", HERE, NOW))
    with pytest.raises(InviteError, match="not issued by a member"):
        knock(replace(good, token=other.issue(NOW + 60)))
    with pytest.raises(InviteError, match=r"serves smollm2 \(digest 000102030405\), found a hello for digest"):
        knock(replace(good, model=b"another model..."))


def test_an_open_swarm_needs_no_token() -> None:
    open_swarm = Membership.found(ANN, open_swarm=True)
    text = invite(membership=open_swarm).text()
    assert parse_invite_untrusted(text).token is None
    joined, _ = knock(parse_invite_untrusted(text), membership=open_swarm)
    assert joined.open and joined.is_member
    assert invite(once=True, membership=open_swarm).token is not None


def test_a_revoked_invite_opens_nothing_until_it_would_have_expired() -> None:
    good = invite()
    assert good.token is not None
    notice = MEMBERSHIP.revoke(good.token)
    assert MEMBERSHIP.genuine(notice) and not MEMBERSHIP.genuine(replace(notice, id=bytes(8)))
    ledger = Ledger().revoking([notice], MEMBERSHIP, NOW)
    with pytest.raises(InviteError, match="was revoked"):
        knock(good, ledger=ledger)
    knock(invite(), ledger=ledger)
    guests = MEMBERSHIP.issue(NOW + 60, role="guest")
    ledger = ledger.revoking([MEMBERSHIP.revoke(guests)], MEMBERSHIP, NOW)
    later = ledger.revoking([MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW + 99_999))], MEMBERSHIP, NOW + 7200)
    assert guests.id in ledger.revoked and guests.id not in later.revoked  # forgotten: all that came of it has expired
    assert good.token.id in later.revoked


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
    assert parse_welcome_untrusted(answer.header, MEMBERSHIP.swarm, BOB, ANN.id).membership == joined
    with pytest.raises(InviteError, match="admits by invite"):
        answer_hello(again, EVE.id, ANN.id, MEMBERSHIP, Ledger(), MODEL, "m", NOW)


def test_an_impostor_at_the_address_is_found() -> None:
    answer, _ = answer_hello(invited(invite(), "node"), BOB.id, ANN.id, MEMBERSHIP, Ledger(), MODEL, "m", NOW)
    for change in (
        {"charter": b"x" * 48},
        {"welcome": bytes(16)},
        {"proof": b""},
        {"open": 1},
        {"model": b"x"},
        {"ref": None},
    ):
        with pytest.raises(PeerError):
            parse_welcome_untrusted({**answer.header, **change}, MEMBERSHIP.swarm, BOB, ANN.id)
    with pytest.raises(InviteError, match="^no$"):
        parse_welcome_untrusted({"refused": "n\no"}, MEMBERSHIP.swarm, BOB, ANN.id)


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
        parse_welcome_untrusted(header, MEMBERSHIP.swarm, BOB, ANN.id)


def test_tokens_travel_in_hellos() -> None:
    for once in (False, True):
        token = invite(once).token
        assert read_token_untrusted(token_parts(token)) == token
    assert token_parts(None) is None


def test_a_ledger_that_is_full_refuses_rather_than_forgets_a_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.mesh.membership.MAX_REMEMBERED", 2)
    ledger = Ledger()
    for _ in range(2):
        token = MEMBERSHIP.issue(NOW + 60, once=True)
        ledger = ledger.using(token, BOB.id, NOW)
    with pytest.raises(InviteError, match="remembers no more"):
        ledger.using(MEMBERSHIP.issue(NOW + 60, once=True), BOB.id, NOW)
    assert len(ledger.using(MEMBERSHIP.issue(NOW + 99, once=True), BOB.id, NOW + 61).used) == 1
    for n in range(4):
        ledger = ledger.revoking([MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW + n + 1))], MEMBERSHIP, NOW)
    assert len(ledger.revoked) == 2


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


def test_who_cannot_make_an_invite_passes_on_one_that_lets_nodes_in() -> None:
    saved = Saved(MEMBERSHIP, MODEL, "smollm2", tuple((node, tuple(at)) for node, at in HERE))
    mine = invite()
    assert passed_on(mine, saved, NOW) == mine
    guest = make_invite(MEMBERSHIP, MODEL, "smollm2", HERE, NOW, 3600, role="guest")
    other = invite(membership=Membership.found(EVE, False))
    for useless in (None, guest, other, invite(once=True), invite(expires_s=1)):
        assert passed_on(useless, saved, NOW + 2) is None
    anybody = Membership.found(ANN, True)
    made = passed_on(None, replace(saved, membership=anybody), NOW)
    assert made is not None and made.token is None and made.swarm == anybody.swarm
