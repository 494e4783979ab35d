"""Receipts talked up: whatever a requester, a node, or both sign anew, no such receipt shows more than the honest one.

A mutator takes a receipt of a run in this process and changes what some of its parties signed, once or twice, as those
could who hold their own keys: fields, whole statements, what is shown. All others sign what they are shown, as honest
nodes do. It is then verified with rows that honest nodes opened, a replay that knows the true tokens and text, and
everybody's key trusted: so what is earned falsely is earned here.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from receipts.check.replay import Replayed
from receipts.check.verdict import Claim, Standing, Verdict
from receipts.check.verify import Options, verify
from receipts.format.document import document_untrusted
from receipts.format.errors import ReceiptError
from receipts.format.salt import Secret
from receipts.record.row_opening import OpeningRequest
from receipts.record.tail import Drawn
from tests.receipts.check.test_audit import LIMIT, Nodes, bodies
from tests.receipts.conftest import PROMPT, Ring, resigned, run_ring

Items = list[dict[str, Any]]
TOKENS = (100, 101, 102, 103, 104, 105)
TEXT = "Hello there, Wörld."
SHOWN = ("prompt", "tokens", "text")
WORDS = ("stop", "length", "complete", "failed", "cancelled", "ended", "lost", "direct", "")
FIRST = len(PROMPT)


class Truth:
    """Replays by knowing what the model draws, and what it says."""

    def replay(self, order: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        true = TOKENS if list(prompt) == PROMPT else ()
        known = [true[index] if index < len(true) else -1 for index in range(len(tokens))]
        gaps = [0.0 if token == best else 9.0 for token, best in zip(tokens, known, strict=True)]
        whole = tuple(tokens) == TOKENS
        return Replayed(known, gaps, TEXT if whole else TEXT[: 3 * len(tokens)])


class Opened(Nodes):
    """Honest nodes: of an order that they never saw they keep nothing."""

    def fetch(self, node: str, request: OpeningRequest, known: Any = ()) -> bytes | None:
        try:
            return super().fetch(node, request, known)
        except (ReceiptError, KeyError):
            return None


@dataclass
class Draft:
    """A receipt while it is being changed: its statements, and what it shows."""

    items: Items
    shown: list[Secret]

    def of(self, kind: str) -> Items:
        return [item for item in self.items if item["kind"] == kind]


@dataclass(frozen=True)
class Base:
    """An honest run, what it consists of, and its nodes where an audit can reach them all."""

    ring: Ring
    draft: Draft
    nodes: Nodes | None


@dataclass(frozen=True)
class Change:
    """One change, by those whose keys it needs."""

    name: str
    signers: frozenset[str]
    make: Callable[[Draft], None]


def changes_of(at: Base) -> list[Change]:
    """Every change of one field, statement or shown value, and some that two statements make alike."""
    ring, draft = at.ring, at.draft
    found: list[Change] = []
    digests = sorted({item["digest"] for item in draft.items} | {item["signer"] for item in draft.items})
    for place, item in enumerate(draft.items):
        if item["kind"] == "witness":
            continue  # nobody's but its own, and the verifier trusts it
        signers = frozenset({item["signer"]})
        label = f"{item['kind']} {place}"
        for path, value in walked(item["body"]):
            if item["kind"] == "order" and path[0] not in ("time_us", "previous_receipt", "prompt", "nonce"):
                continue  # stages take no order that says otherwise of what they compute
            for other in others(value, digests, place):
                found.append(Change(f"{label} {path} = {other!r}", signers, setting(place, ("body", *path), other)))
        for key in ("run", "sequence"):
            for by in (-1, 1, 50):
                value = item["chain"][key] + by
                if value >= 0:
                    found.append(Change(f"{label} {key} {by:+}", signers, setting(place, ("chain", key), value)))
        if item["kind"] not in ("order", "close"):
            requester = frozenset({ring.record.author.id})
            found.append(Change(f"{label} left out", requester, leaving_out(place)))
            found.append(Change(f"{label} behind all", requester, moving(place)))
            found.append(Change(f"{label} twice", requester | signers, doubling(place)))
    return [*found, *alike(draft), *showing(ring, draft)]


def walked(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if path and path[-1] != "statements":
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walked(item, (*path, key))
    elif isinstance(value, list) and (not path or path[-1] not in ("statements", "samples_us")):
        for index, item in enumerate(value):
            yield from walked(item, (*path, index))


def others(value: Any, digests: Sequence[str], salt: int) -> list[Any]:
    """Values to put in the place of one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [other for other in (0, value + 1, value - 1, 2 * value, value // 2, 2**40) if other >= 0]
    if isinstance(value, str):
        if re.fullmatch("[0-9a-f]{64}", value):
            return [digests[(salt * 7 + step) % len(digests)] for step in (1, 4)]
        return [word for word in WORDS if word != value]
    if isinstance(value, list):
        return [value[:-1], value[1:], value[::-1], [*value, *value[-1:]], []] if value else []
    return ["ab" * 32] if value is None else []


def setting(place: int, path: tuple[Any, ...], value: Any) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        where: Any = draft.items[place]
        for step in path[:-1]:
            where = where[step]
        where[path[-1]] = copy.deepcopy(value)

    return make


def leaving_out(place: int) -> Callable[[Draft], None]:
    """The statement is not closed over. It stays in its place until all changes are made, since those name places."""
    return lambda draft: draft.items[place].update(gone=True)


def moving(place: int) -> Callable[[Draft], None]:
    return lambda draft: draft.items[place].update(late=True)


def doubling(place: int) -> Callable[[Draft], None]:
    return lambda draft: draft.items[place].update(twice=True)


def alike(draft: Draft) -> list[Change]:
    """Changes that both ends of an edge sign, or a stage's edge and its end."""
    found = []
    edges = [(place, item) for place, item in enumerate(draft.items) if item["kind"] == "edge"]
    for place, item in edges:
        for other_place, other in edges:
            same = all(item["body"][key] == other["body"][key] for key in ("epoch", "index"))
            if not same or other_place <= place:
                continue
            signers = frozenset({item["signer"], other["signer"]})
            for key in ("frames", "bytes", "root", "sender_rtt", "receiver_rtt", "link"):
                for value in changed(item["body"][key]):
                    both = [setting(where, ("body", key), value) for where in (place, other_place)]
                    found.append(Change(f"both ends of edge {place} {key} = {value!r}", signers, together(both)))
    return found


def changed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [{"count": 9, "min_us": 5, "median_us": 5, "samples_us": [5] * 9}]
    return [value + 3, value // 2] if isinstance(value, int) else ["00" * 32 if len(str(value)) == 64 else "relay"]


def together(makes: Sequence[Callable[[Draft], None]]) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        for each in makes:
            each(draft)

    return make


def showing(ring: Ring, draft: Draft) -> list[Change]:
    """Other text, tokens or prompt, with the digests that the requester signs of them; the tail's root, too, or not."""
    requester = ring.record.author.id
    found = [
        Change(f"text {text!r}", frozenset({requester}), telling("text", text))
        for text in ("", "Hello", TEXT[:-1], TEXT + "!", TEXT.upper())
    ]
    found.append(Change("prompt", frozenset({requester}), telling("prompt", [token + 1 for token in PROMPT])))
    for tokens in ((*TOKENS[:-1], 999), (999, *TOKENS[1:]), TOKENS[:-1], TOKENS[:1], (*TOKENS, 106)):
        for margin in (0, 1_250_000, 10**15):
            value = {"first": FIRST, "tokens": list(tokens), "margins_ppm": [margin] * len(tokens)}
            found.append(Change(f"{value}", frozenset({requester}), telling("tokens", value)))
            tails = frozenset(item["signer"] for item in draft.of("tail"))
            found.append(Change(f"{value} and tails", tails | {requester}, telling("tokens", value, tails)))
    margins = {"first": FIRST, "tokens": list(TOKENS), "margins_ppm": [10**15] * len(TOKENS)}
    found.append(Change("margins", frozenset({requester}), telling("tokens", margins)))
    return found


def telling(name: str, value: Any, tails: frozenset[str] = frozenset()) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        (before,) = [secret for secret in draft.shown if secret.name == name]
        after = replace(before, value=value)
        draft.shown[draft.shown.index(before)] = after
        (statement,) = draft.of("order" if name == "prompt" else "close")
        statement["body"][name] = after.digest
        if name != "tokens":
            return
        statement["body"]["new_tokens"] = len(value["tokens"])
        drawn = Drawn(FIRST, tuple(value["tokens"]), tuple(value["margins_ppm"]))
        starts = [FIRST, *(item["body"]["position"] for item in draft.of("replan"))]
        stops = [*starts[1:], FIRST + len(drawn.tokens)]
        for item in draft.of("tail"):
            if item["signer"] in tails:
                part = drawn.between(starts[item["body"]["epoch"]], stops[item["body"]["epoch"]])
                item["body"].update(count=len(part.tokens), root=part.root(after.salt))

    return make


def draft_of(ring: Ring) -> Draft:
    draft = Draft([], list(document_untrusted(ring.receipt).disclosed))
    resigned(ring, lambda items: draft.items.extend(copy.deepcopy(items)))
    return draft


def mutant(base: Base, changes: Sequence[Change]) -> bytes:
    """The receipt with some changes. Raises ValueError, KeyError, IndexError or TypeError where one undoes another."""
    draft = copy.deepcopy(base.draft)
    for change in changes:
        change.make(draft)

    def put(items: Items) -> None:
        place = next(index for index, item in enumerate(draft.items) if item["kind"] == "close")
        before = [item for item in draft.items[:place] if not item.get("gone")]
        late = [item for item in before if item.get("late")]
        again = [copy.deepcopy(item) for item in before if item.get("twice")]
        for item in again:
            item["chain"]["sequence"] += 100
        items[:] = [*(item for item in before if not item.get("late")), *late, *again, *draft.items[place:]]

    return resigned(base.ring, put, draft.shown)


def verdict_of(base: Base, receipt: bytes, audited: bool) -> Verdict:
    trust = frozenset(party.id for party in base.ring.parties.values())
    auditor = base.nodes if audited else None
    secrets = tuple(base.ring.record.secrets) if receipt == base.ring.receipt else ()
    return verify(
        receipt,
        Options(
            trust=trust, auditor=auditor, replayer=Truth(), audit_rows=4, limit=lambda dtype, wire: LIMIT,
            chooser=random.Random(3), secrets=secrets,
        ),
    )  # fmt: skip


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def earned(base: Base, honest: Verdict, found: Verdict, changes: Sequence[Change]) -> list[str]:
    """What a changed receipt shows beyond the honest one."""
    if found.refusal is not None:
        return []
    more = [f"met {word}" for word in found.met - honest.met]
    if (found.level or 0) > (honest.level or 0):
        more.append(f"level {found.level}")
    if found.exit_code < honest.exit_code:
        more.append(f"exit {found.exit_code}")
    told = [(d.prompt, d.tokens.tokens if d.tokens else None, d.text) for d in (honest.disclosed, found.disclosed)]
    if told[0] != told[1]:  # what is shown is false: the same words would be false of it
        false = {"replay", "audit", "exact"} if told[0][:2] != told[1][:2] else {"replay"}  # audits are of tokens
        more += [f"met {word} of what is false" for word in found.met & false]
        more += [f"{c.text} of what is false" for c in found.claims if c.subject == "output" and proven(c)]
    known = [claim for claim in honest.claims if claim.standing in HIGH]
    guilty = frozenset[str]().union(*(change.signers for change in changes))
    for claim in found.claims:
        if claim.standing in HIGH and not any(covers(one, claim) for one in known):
            if not own_word(base, claim, guilty):
                more.append(f"{claim.standing.value}: {claim.subject} {claim.about[:8]} {claim.text}")
    return more


HIGH = (Standing.PROVEN, Standing.COSIGNED, Standing.WITNESSED)


def proven(claim: Claim) -> bool:
    return claim.standing is Standing.PROVEN


def covers(honest: Claim, found: Claim) -> bool:
    """Whether an honest line says as much: the same words of the same thing, with no smaller number."""
    if (honest.standing, honest.subject, honest.about) != (found.standing, found.subject, found.about):
        return False
    if honest.subject in ("signatures", "audit", "token statistics") or found.text.startswith(honest.text):
        return True
    if honest.subject == "speed":
        return rate(found.text) <= rate(honest.text) * 1.001
    return NUMBER.sub("#", honest.text) == NUMBER.sub("#", found.text) and all(
        float(less) <= float(most)
        for less, most in zip(NUMBER.findall(found.text), NUMBER.findall(honest.text), strict=True)
    )


def rate(text: str) -> float:
    return float(text.split(" tokens/s")[0].split()[-1])


def own_word(base: Base, claim: Claim, guilty: frozenset[str]) -> bool:
    """Co-signed by the guilty alone: what two parties sign alike is their word, and called no more than that."""
    if claim.standing is not Standing.COSIGNED:
        return False
    if claim.subject in ("rtt", "traffic"):
        ends = re.findall("[0-9a-f]{8}", claim.text.split()[0])
        return all(any(key.startswith(end) for key in guilty) for end in ends)
    tails = {item["signer"] for item in base.draft.of("tail")}
    return tails | {base.ring.record.author.id} <= guilty


@cache
def base(name: str, folder: Path) -> Base:
    """recovered: a node was lost; whim: none was; stopped: it ended itself, seen late by its witness; own: private."""
    more: dict[str, Any] = {
        "plain": {},
        "recovered": {"fail_at": 3},
        "whim": {"fail_at": 3, "whim": True},
        "stopped": {"finish": "stop", "tail_span_us": 9_000_000},
        "own": {"own": 2},
    }[name]
    ring = run_ring(
        tokens=TOKENS, text=TEXT, show=SHOWN, salt=f"talked {name}", body_of=bodies(), addresses=False, **more
    )
    ring.receipt = ring.record.receipt(SHOWN)
    return Base(ring, draft_of(ring), Opened(ring, folder / name) if name != "own" else None)


NAMES = ("plain", "recovered", "whim", "stopped", "own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talked up")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_honest_ones_show(folder: Path, name: str) -> None:
    honest = base(name, folder)
    verdict = verdict_of(honest, honest.ring.receipt, honest.nodes is not None)
    assert verdict.refusal is None, verdict.line
    wanted = {"plain": {"audit", "replay", "witness"}, "whim": {"audit", "replay", "witness"}}
    wanted |= {"recovered": {"replay", "witness"}, "stopped": {"audit", "replay"}, "own": {"replay", "witness"}}
    assert verdict.met == wanted[name], verdict.line


def search(at: Base, tries: Sequence[Sequence[Change]], audited: bool) -> tuple[list[str], int]:
    """What was earned falsely, and how many of the changed receipts were not refused."""
    honest = verdict_of(at, at.ring.receipt, audited)
    found, passed = [], 0
    for changes in tries:
        try:
            receipt = mutant(at, changes)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            continue
        verdict = verdict_of(at, receipt, audited)
        passed += verdict.refusal is None
        found += [
            f"{' & '.join(change.name for change in changes)}: {what}" for what in earned(at, honest, verdict, changes)
        ]
    return found, passed


def drawn(at: Base, singles: int, pairs: int, seed: int) -> list[list[Change]]:
    """Single changes, and pairs that one party, or the requester with one node, can make."""
    every, chooser = changes_of(at), random.Random(seed)
    requester = at.ring.record.author.id
    tries = [[change] for change in chooser.sample(every, min(singles, len(every)))]
    tries += [[change] for change in every if change.name.startswith(("text", "prompt", "{", "margins"))][:pairs]
    while len(tries) < singles + 2 * pairs:
        one, other = chooser.choice(every), chooser.choice(every)
        if len((one.signers | other.signers) - {requester}) <= 1:
            tries.append([one, other])
    return tries


@pytest.mark.parametrize("name", NAMES)
def test_nobody_talks_a_receipt_up(folder: Path, name: str) -> None:
    at = base(name, folder)
    found, passed = search(at, drawn(at, 20, 10, 11), audited=False)
    assert not found, "\n".join(found)
    assert passed, "every change is refused, so nothing is shown by what the others earn"


@pytest.mark.parametrize("name", ["plain", "recovered", "whim", "stopped"])
def test_nobody_talks_an_audit_up(folder: Path, name: str) -> None:
    at = base(name, folder)
    found, _ = search(at, drawn(at, 4, 4, 13), audited=True)
    assert not found, "\n".join(found)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", NAMES)
def test_nobody_talks_a_receipt_up_by_any_single_change_or_many_pairs(folder: Path, name: str) -> None:
    at = base(name, folder)
    audited = at.nodes is not None
    found, _ = search(at, [[change] for change in changes_of(at)], audited)
    more, _ = search(at, drawn(at, 0, 1500, 17), audited)
    assert not [*found, *more], "\n".join([*found, *more])
