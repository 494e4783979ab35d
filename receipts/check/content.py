"""What a run said and what it said it on: disclosed values, tokens, hardware, as claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from receipts.check.checks import ms
from receipts.check.dictated import given_tokens
from receipts.check.run import ReceiptRun
from receipts.check.verdict import Claim, Disclosed, Standing
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, Shaped
from receipts.format.salt import Secret
from receipts.record.tail import Drawn

_WRONG = {"prompt": Refusal.PROMPT, "tokens": Refusal.TOKENS, "text": Refusal.TEXT}
MAX_TOKEN = 2**31
MAX_POSITION = 2**32


def check_disclosed(run: ReceiptRun, secrets: Sequence[Secret]) -> Disclosed:
    """Each disclosed value is the one whose salted digest was signed."""
    signed = _signed_digests(run)
    prompt: tuple[int, ...] | None = None
    tokens: Drawn | None = None
    text: str | None = None
    plain: dict[str, Secret] = {}
    for secret in secrets:
        if secret.digest not in signed[secret.name]:
            refusal = _WRONG.get(secret.name, Refusal.DISCLOSURE)
            raise ReceiptError(refusal, f"the disclosed {secret.name} is not the one whose digest was signed")
        if secret.name == "prompt":
            prompt = _numbers(secret.value, "prompt")
            if len(prompt) != run.order.prompt_tokens:
                raise ReceiptError(Refusal.PROMPT, f"{len(prompt)} tokens, the order says {run.order.prompt_tokens}")
        elif secret.name == "tokens":
            tokens = _drawn(run, secret.value)
        elif not isinstance(secret.value, str):
            raise ReceiptError(Refusal.SHAPE, f"the disclosed {secret.name} is not text")
        elif secret.name == "text":
            text = secret.value
        else:
            plain[secret.digest] = secret
    return Disclosed(prompt, tokens, text, plain)


def _signed_digests(run: ReceiptRun) -> dict[str, set[str]]:
    observed = {edge.observed for epoch in run.epochs for edge in epoch.edges.values()}
    for witness in run.witnesses:
        observed |= {body.observed for body in (witness.order, witness.closed) if body is not None}
    uuids = {accept.hardware.uuid for epoch in run.epochs for accept in epoch.accepts.values()}
    return {
        "prompt": {run.order.prompt},
        "tokens": {run.close.tokens},
        "text": {run.close.text},
        "address": {digest for digest in observed if digest is not None},
        "uuid": {digest for digest in uuids if digest is not None},
    }


def _numbers(value: Any, what: str, limit: int = MAX_TOKEN) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < limit for item in value):
        raise ReceiptError(Refusal.SHAPE, f"the disclosed {what} is not a list of integers")
    return tuple(value)


def _drawn(run: ReceiptRun, value: Any) -> Drawn:
    if not isinstance(value, dict) or value.keys() != {"first", "tokens", "margins_ppm"}:
        raise ReceiptError(Refusal.SHAPE, "the disclosed tokens have other fields than first, tokens, margins_ppm")
    drawn = Drawn(value["first"], _numbers(value["tokens"], "tokens"), _numbers(value["margins_ppm"], "margins", 2**53))
    if len(drawn.tokens) != len(drawn.margins_ppm) or len(drawn.tokens) != run.close.new_tokens:
        raise ReceiptError(Refusal.TOKENS, f"{len(drawn.tokens)} tokens, the close says {run.close.new_tokens}")
    if drawn.first != run.close.first_position:
        raise ReceiptError(Refusal.TOKENS, f"tokens begin at {drawn.first}, the close says {run.close.first_position}")
    return drawn


def check_tokens(run: ReceiptRun, disclosed: Disclosed, token_salt: bytes | None) -> list[Claim]:
    """The tails drew what the requester says was drawn, position by position."""
    close, order = run.close, run.order
    if close.first_position != order.prompt_tokens:
        raise ReceiptError(Refusal.TOKENS, f"tokens begin at {close.first_position} after {order.prompt_tokens}")
    if close.first_position + close.new_tokens > MAX_POSITION:
        raise ReceiptError(Refusal.TOKENS, f"tokens up to position {close.first_position + close.new_tokens}")
    if close.new_tokens > order.max_tokens:
        raise ReceiptError(Refusal.TOKENS, f"{close.new_tokens} tokens, the order allows {order.max_tokens}")
    until = close.first_position + close.new_tokens
    checked = covered = 0
    for epoch, following in zip(run.epochs, [*run.epochs[1:], None], strict=True):
        tail = epoch.tail
        if tail is None:
            continue
        label = f"tail of epoch {epoch.number}"
        if tail.first != epoch.first_position:
            raise ReceiptError(Refusal.TOKENS, f"{label}: begins at {tail.first}, its plan at {epoch.first_position}")
        stop = following.first_position if following is not None else until
        if following is None and epoch.closed and tail.first + tail.count != until:
            raise ReceiptError(Refusal.TOKENS, f"{label}: accounts for {tail.count} tokens up to {until}")
        if tail.first + tail.count > stop:
            raise ReceiptError(
                Refusal.TOKENS, f"{label}: claims positions up to {tail.first + tail.count}, the next begins at {stop}"
            )
        covered += tail.count
        if disclosed.tokens is not None and token_salt is not None:
            part = disclosed.tokens.between(tail.first, tail.first + tail.count)
            if part.root(token_salt) != tail.root:
                raise ReceiptError(Refusal.TOKENS, f"{label}: drew other tokens than the requester's list")
            checked += tail.count
    if order.own_layers:
        shown = "" if disclosed.tokens is not None else ", not disclosed"
        text = f"{close.new_tokens} tokens{shown}, by the requester alone: it drew them behind its own layers"
        return [Claim(Standing.CLAIMED, "tokens", text)]
    return [_token_claim(close.new_tokens, covered, checked, disclosed, given_tokens(run))]


def _token_claim(count: int, covered: int, checked: int, disclosed: Disclosed, given: int) -> Claim:
    if disclosed.tokens is None:
        return Claim(Standing.NOT_CHECKED, "tokens", f"{count} tokens, not disclosed; the tail accounts for {covered}")
    if checked == count:
        own = f", the first {given} given by the order and not drawn" if given else ""
        return Claim(Standing.COSIGNED, "tokens", f"{count}/{count} tokens by tail and requester{own}")
    text = f"{checked}/{count} tokens by tail and requester, the rest by the requester alone"
    return Claim(Standing.CLAIMED, "tokens", text)


def constraint_claims(run: ReceiptRun) -> list[Claim]:
    """What the answer was to be held to, and what logits were to be changed by; nothing where neither was asked for."""
    held_to, found = run.order.held_to, []
    if held_to is not None:
        what = f"held to a {held_to.kind} of {len(held_to.text)} characters, read by {held_to.engine}"
        found.append(Claim(Standing.CLAIMED, "constraint", f"{what}: only --audit and --replay show that it was"))
    if run.order.shaped is not None and (what := _shaped(run.order.shaped)):
        found.append(Claim(Standing.CLAIMED, "shaping", f"{what}: only --audit and --replay show that it was so"))
    return found


def _shaped(said: Shaped) -> str:
    """What the order does to logits, in words."""
    parts = [
        f"{name} penalty {ppm / 1e6:g}"
        for name, ppm in (("presence", said.presence_ppm), ("frequency", said.frequency_ppm))
        if ppm
    ]
    if said.bias:
        parts.append(f"{len(said.bias)} biased token{'s' if len(said.bias) > 1 else ''}")
    if said.min_tokens:
        parts.append(f"no end before {said.min_tokens} tokens")
    if said.given:
        parts.append(f"the first {len(said.given)} tokens given by the requester, not drawn")
    if said.thought is not None:
        parts.append(f"thoughts closed after {said.thought.most} tokens")
    return ", ".join(parts)


def output_claim(disclosed: Disclosed, decoded: bool = False) -> Claim:
    """What is known of the text. `decoded`: its tokens were decoded here, to this text.

    No digest of the text is said: one without a salt would let anybody confirm a guess at a short answer.
    """
    if disclosed.text is None:
        return Claim(Standing.NOT_CHECKED, "output", "text not disclosed")
    if decoded:
        return Claim(Standing.PROVEN, "output", "the tokens decode to the text")
    return Claim(Standing.CLAIMED, "output", "the text is the requester's word: only --replay decodes the tokens to it")


def hardware_claims(run: ReceiptRun) -> list[Claim]:
    """What each node says it is: nothing here is checked, whoever signed it."""
    claims = []
    for node in run.nodes():
        accept = next((epoch.accepts[node] for epoch in reversed(run.epochs) if node in epoch.accepts), None)
        if accept is None:
            continue
        claims.append(Claim(Standing.CLAIMED, "hardware", _device(accept), node))
        text = f"{accept.software.name} {accept.software.version} {accept.software.digest[:12]}"
        claims.append(Claim(Standing.CLAIMED, "software", text, node))
    return claims


def _device(accept: Accept) -> str:
    hardware = accept.hardware
    speed = hardware.us_per_layer.get("1")
    text = f"{hardware.device}, {hardware.memory_bytes / 2**30:.1f} GiB, {hardware.cores} cores"
    return text + (f", {ms(speed)} ms per layer" if speed is not None else "")


def outcome_claim(run: ReceiptRun) -> Claim:
    return Claim(Standing.CLAIMED, "outcome", f"{run.close.outcome} ({run.close.finish_reason})")


def draft_claim(run: ReceiptRun) -> Claim:
    counts = ", ".join(f"{name} {count}" for name, count in sorted(run.close.draft.items()))
    return Claim(Standing.CLAIMED, "draft", f"{run.close.speculation}, {run.close.drafter}: {counts}")
