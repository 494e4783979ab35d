"""What the tail of a ring may answer: exactly the frames in flight, in order, with tokens that exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import PeerError
from swarm.ring.frame import Answer


@dataclass(frozen=True)
class Sent:
    """A frame in flight: when it left (monotonic seconds), the numbers of its rows that want an answer, and how many
    tokens ahead the tail may draft."""

    at: float
    wanted: NDArray[np.intp]
    drafts: int = 0


def check_answer_untrusted(answer: Answer, in_flight: Mapping[int, Sent], vocab_size: int | None) -> None:
    """Raise PeerError unless `answer` is to the next frame in flight that wants one, for each of its wanted rows.

    `in_flight`: frames of this epoch by number. `vocab_size`: tokens are below it; None: it is not known.
    """
    seq = answer.seq
    if seq not in in_flight:
        late = "an answer to" if not in_flight or seq > max(in_flight) else "another answer to"
        raise PeerError(f"expected an answer to a frame in flight, found {late} frame {seq}")
    skipped = [number for number, sent in in_flight.items() if number < seq and len(sent.wanted)]
    if skipped:
        raise PeerError(f"expected the answer to frame {min(skipped)}, found one to frame {seq}")
    if answer.hidden is not None:
        raise PeerError(f"expected tokens from the last stage of the model, found hidden rows with frame {seq}")
    wanted = in_flight[seq].wanted
    if len(answer.row) != len(wanted) or np.any(answer.row != wanted):
        raise PeerError(f"expected tokens for {len(wanted)} rows of frame {seq}, found {len(answer.row)} others")
    if answer.drafts is not None and len(answer.drafts.token) > in_flight[seq].drafts:
        found, asked = len(answer.drafts.token), in_flight[seq].drafts
        raise PeerError(f"expected drafts of at most {asked} tokens ahead with frame {seq}, found {found}")
    drafted = [answer.drafts.token] if answer.drafts is not None else []
    for tokens in (answer.token, answer.top_token, *drafted):
        if tokens.size and (int(tokens.min()) < 0 or (vocab_size is not None and int(tokens.max()) >= vocab_size)):
            worst = int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max())
            raise PeerError(f"expected token ids from 0 to {(vocab_size or 0) - 1}, found {worst} in an answer")
    values = (answer.margin, answer.logprob, answer.top_logprob)
    if not all(np.isfinite(each).all() for each in values):  # honest tails bound all three; JSON has no infinity
        raise PeerError("expected log-probabilities in an answer, found what is not a number")


def within_pass(answer: Answer, took_us: int) -> Answer:
    """The answer with what stages say of their time cut to what the pass took, `took_us` by the requester's clock.

    All of queueing and computing lies within it, the tail's drafting within its computing. What is said beyond that is
    false, and who said it is not known; shared out in proportion, it can mislead the pricing of drafts by one pass.
    """
    told = sum(queued + computed for queued, computed in answer.timings)
    if told <= took_us and answer.drafts_us <= took_us:
        return answer
    share = min(1.0, took_us / max(1, told))
    timings = tuple((int(queued * share), int(computed * share)) for queued, computed in answer.timings)
    return replace(answer, timings=timings, drafts_us=min(answer.drafts_us, took_us))
