"""Revocations that somebody tries to hinder: by a shorter one, by many, by long ones, by an invite that was altered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swarm.mesh.admission import extend_proof
from swarm.mesh.apply import apply
from swarm.mesh.event import DeltaHeard, Linked
from swarm.mesh.membership import MAX_PER_REVOKER, MAX_REMEMBERED, InviteError, Ledger, Membership, Revocation
from swarm.mesh.record import MAX_PROOF_BYTES
from swarm.mesh.saved import Saved, load, save
from swarm.mesh.state import State
from swarm.net.identity import Identity
from tests.swarm.mesh.make import ANN, BOB, MEMBERSHIP, MODEL, NOW


def let_in(by: Membership, tokens: int = 0) -> Membership:
    """A key that `by` lets in, with so many invites named in its proof."""
    who = Identity.generate()
    proof = extend_proof(by.proof, by.signer, by.swarm, who.id, "node", 0, [bytes([n]) * 8 for n in range(tokens)])
    return Membership.accept_untrusted(by.swarm, who, by.charter, False, proof)


def notices(by: Membership, count: int, sign: bool = False) -> list[Revocation]:
    """Of invites that nobody made; signatures are looked at before the ledger is."""
    made = [
        Revocation(n.to_bytes(4, "big") + by.signer.id[:4], 0, by.signer.id, by.proof, bytes(64)) for n in range(count)
    ]
    return [replace(item, signature=by.signer.sign(item.signed_part(by.swarm))) for item in made] if sign else made


def shorter(notice: Revocation, until: int, by: Membership) -> Revocation:
    made = replace(notice, expires=until, revoker=by.signer.id, chain=by.proof)
    return replace(made, signature=by.signer.sign(made.signed_part(by.swarm)))


def test_a_revocation_that_ends_soon_does_not_stand_in_for_one_that_does_not() -> None:
    friend = let_in(MEMBERSHIP)
    token = MEMBERSHIP.issue(NOW + 600)
    lasting = MEMBERSHIP.revoke(token)
    soon = shorter(lasting, NOW + 1, friend)
    for order in ((soon, lasting), (lasting, soon)):
        ledger = Ledger()
        for notice in order:
            ledger = ledger.revoking([notice], MEMBERSHIP, NOW)
        assert ledger.at(NOW + 5).revoked == {token.id: lasting}
        assert Ledger().revoking(order, MEMBERSHIP, NOW).revoked == {token.id: lasting}


def test_a_longer_revocation_is_news_and_told() -> None:
    friend = let_in(MEMBERSHIP)
    lasting = MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW + 600))
    state = State(ANN.id, revoked={lasting.id: shorter(lasting, NOW + 1, friend)})
    for name in (BOB.id, friend.signer.id):
        state, _ = apply(state, Linked(name), 0.0)
    state, actions = apply(state, DeltaHeard(BOB.id, (), (), (lasting,)), 0.0)
    assert state.revoked == {lasting.id: lasting} and len(actions) == 1


def test_a_member_with_many_keys_leaves_room_to_those_before_it() -> None:
    hostile = let_in(MEMBERSHIP)
    ledger = Ledger()
    for _ in range(MAX_REMEMBERED // MAX_PER_REVOKER + 1):
        ledger = ledger.revoking(notices(let_in(hostile), MAX_PER_REVOKER + 1), MEMBERSHIP, NOW)
    assert len(ledger.revoked) < MAX_REMEMBERED
    for member in (let_in(MEMBERSHIP), MEMBERSHIP):
        token = MEMBERSHIP.issue(NOW + 600)
        ledger = ledger.revoking([member.revoke(token)], MEMBERSHIP, NOW)
        assert token.id in ledger.revoked


def test_the_most_and_longest_revocations_are_read_again_at_the_next_start(tmp_path: Path) -> None:
    """Else a member could keep every other from starting again."""
    by = MEMBERSHIP
    while len(by.proof) + 24 * 9 + 110 < MAX_PROOF_BYTES:
        by = let_in(by, 24)
    assert len(by.proof) > MAX_PROOF_BYTES * 0.8
    ledger = Ledger({item.id: item for item in notices(by, MAX_REMEMBERED, sign=True)})
    save(tmp_path, Saved(MEMBERSHIP, MODEL, "smollm2", (), ledger))
    found = load(tmp_path, ANN)
    assert found is not None and len(found.ledger.revoked) == MAX_REMEMBERED


def test_an_altered_invite_is_not_revoked_in_its_name() -> None:
    """Else who holds the real one might have the owner end another, or one that is forgotten soon."""
    token = MEMBERSHIP.issue(NOW + 600)
    for altered in (replace(token, role="guest", expires=NOW + 1), replace(token, id=bytes(8))):
        with pytest.raises(InviteError, match="was altered; nothing is revoked"):
            MEMBERSHIP.revoke(altered)
