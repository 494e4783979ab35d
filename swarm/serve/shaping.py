"""Fields that change logits: penalties by count, biases, a least length, as OpenAI, vLLM and llama-server have them."""

from __future__ import annotations

from typing import Any

from swarm.model.shaping import MAX_BIASES, MOST_BIAS, Shaping
from swarm.serve.body import describe, wrong
from swarm.serve.errors import bad_field
from swarm.serve.requests import Sampled

SHAPING = ("presence_penalty", "frequency_penalty", "logit_bias", "min_tokens")


def read_shaping(asked: Sampled, limit: int | None) -> Shaping | None:
    """What a request does to logits; None where it asks for nothing. `limit`: its max_tokens. Raises ApiError."""
    presence, frequency = asked.presence_penalty or 0.0, asked.frequency_penalty or 0.0
    least = asked.min_tokens or 0
    if limit is not None and least > limit:
        raise bad_field("min_tokens", f"'min_tokens' ({least}) is more than 'max_tokens' ({limit})")
    bias = _bias(asked.logit_bias)
    if not (presence or frequency or least or bias):
        return None
    return Shaping(presence, frequency, bias, least)


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's object from ids to what is added, or llama-server's array of pairs, where false bans a token."""
    if value is None:
        return ()
    if isinstance(value, dict):
        pairs: list[Any] = [[int(name) if name.isdecimal() else name, added] for name, added in value.items()]
    elif isinstance(value, list):
        pairs = value
    else:
        raise wrong("logit_bias", "an object or an array of pairs", value)
    if len(pairs) > MAX_BIASES:
        raise bad_field("logit_bias", f"expected at most {MAX_BIASES} entries in 'logit_bias', found {len(pairs)}")
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong("logit_bias", "an array of pairs", value)
        token, added = pair
        if type(token) is not int or not 0 <= token < 2**31:
            shown = repr(token)[:40].encode("utf-8", "replace").decode()
            raise bad_field("logit_bias", f"expected token ids in 'logit_bias', found {shown}", "invalid_type")
        if added is False:
            added = -MOST_BIAS
        if isinstance(added, bool) or not isinstance(added, int | float):
            raise bad_field(
                "logit_bias", f"expected numbers in 'logit_bias', found {describe(added)} for {token}", "invalid_type"
            )
        if not -MOST_BIAS <= added <= MOST_BIAS:
            raise bad_field("logit_bias", f"expected -100 to 100 in 'logit_bias', found {added!r:.40} for {token}")
        found[token] = float(added)
    return tuple(sorted(found.items()))
