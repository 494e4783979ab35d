"""Token ids to text as they come: whole characters only, nothing past a stop string, special tokens kept apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType

from swarm.model.text.decoder import TokenDecoder
from swarm.run.api import Piece, Special

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MAX_UNFINISHED = 8
"""Tokens after which a replacement character is the text and not half of a character."""
LEFT_TOKENS = 8
"""Ordinary tokens before a new one that are decoded with it: a token's look depends on its left neighbours only."""
NO_SPECIAL: Mapping[int, str] = MappingProxyType({})

# Special tokens stand in the held text as lone surrogates, which no decoder gives: one for each that a stop string
# names, one for all others.
_OTHER = "\ud800"
_FIRST_NAMED = 0xD801
_SURROGATE = re.compile("[\ud800-\udfff]")


class TextStream:
    """Feeds on committed tokens and gives the text that they add.

    Text that might be the beginning of a stop string is held back until it is decided, so a reader never sees part
    of one. `decoder` turns ordinary ids into text; it is asked on a short window, so that a token's look (a leading
    space, a half character) is that of its neighbourhood, and long answers cost no more per token than short ones.

    before    ids that the answer continues; only the last few count
    special   text of the ids that are for programs: known by id, found by stop strings, not part of `text`
    keep_stop whether the stop string or token itself is part of the text
    stop_tokens  ids that end the text like a stop string
    least     tokens before any stop string is looked for
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        stop: Sequence[str] = (),
        *,
        before: Sequence[int] = (),
        special: Mapping[int, str] = NO_SPECIAL,
        keep_stop: bool = False,
        stop_tokens: AbstractSet[int] = frozenset(),
        least: int = 0,
    ) -> None:
        self._decoder = decoder
        self._special = special
        self._stops, self._named = _marked([s for s in stop if s], special)
        self._keep_stop = keep_stop
        self._stop_tokens = stop_tokens
        self._least = least
        self._window = [token for token in before[-4 * LEFT_TOKENS :] if token not in special][-LEFT_TOKENS:]
        self._settled = len(self._window)
        self._held = ""
        self._held_special: list[Special] = []
        self._pieces: list[Piece] = []
        self.text = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Text that this token adds (may be empty). After `stopped` nothing more is added."""
        if self.stopped:
            return ""
        self._least -= 1
        if token in self._stop_tokens and not self._keep_stop:
            rest = self.finish()
            self.stopped = True
            return rest
        added = self._feed(token)
        if token in self._stop_tokens and not self.stopped:
            added += self.finish()
            self.stopped = True
        return added

    def _feed(self, token: int) -> str:
        if token in self._special:
            rest = self._settle()
            self._held_special.append(Special(token, self._special[token]))
            return self._release(rest + self._named.get(self._special[token], _OTHER))
        self._window.append(token)
        if len(self._window) - self._settled < MAX_UNFINISHED and self._decoder.decode(self._window).endswith(
            UNFINISHED
        ):
            return ""
        return self._release(self._settle())

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        if self.stopped:
            return ""
        rest = self._release(self._settle())
        return rest if self.stopped else rest + self._give(len(self._held))

    def take_pieces(self) -> tuple[Piece, ...]:
        """What was given since the last call, special tokens in their places; empty when there is none among it."""
        pieces, self._pieces = tuple(self._pieces), []
        return pieces if any(isinstance(piece, Special) for piece in pieces) else ()

    def _settle(self) -> str:
        """The text of the tokens that have not been told yet; they become left context."""
        if self._settled == len(self._window):
            return ""
        before = self._decoder.decode(self._window[: self._settled])
        now = self._decoder.decode(self._window)
        self._window = self._window[-LEFT_TOKENS:]
        self._settled = len(self._window)
        # Where the prompt ends within a character, the answer's first token turns its last replacement character.
        return now[len(os.path.commonprefix((before, now))) :] if before.endswith(UNFINISHED) else now[len(before) :]

    def _release(self, added: str) -> str:
        self._held += added
        if self._least >= 0:
            return self._give(len(self._held))
        shown = [at for at, char in enumerate(self._held) if not _SURROGATE.match(char)]
        text = "".join(self._held[at] for at in shown)
        places = [*shown, len(self._held)]
        hits = [_found(self._held, s, range(len(self._held) + 1)) if marked else _found(text, s, places)
                for s, marked in self._stops]  # fmt: skip
        hit = min((hit for hit in hits if hit is not None), default=None)
        if hit is not None:
            self.stopped = True
            given = self._give(hit[1] if self._keep_stop else hit[0])
            self._held = ""
            return given
        return self._give(
            min(
                (
                    len(self._held) - _overlap(self._held, s) if marked else places[len(text) - _overlap(text, s)]
                    for s, marked in self._stops
                ),
                default=len(self._held),
            )
        )

    def _give(self, count: int) -> str:
        """Let go of the first `count` held characters."""
        given, self._held = self._held[:count], self._held[count:]
        shown = []
        for part in re.split(f"({_SURROGATE.pattern})", given):
            if _SURROGATE.match(part):
                self._pieces.append(self._held_special.pop(0))
            elif part:
                self._pieces.append(part)
                shown.append(part)
        text = "".join(shown)
        self.text += text
        return text


def _marked(stops: Sequence[str], special: Mapping[int, str]) -> tuple[list[tuple[str, bool]], dict[str, str]]:
    """Every stop string as it is (to be found in what is shown), and those that name special tokens with stand-ins for
    them (to be found in what was said); and the stand-in of each special token that is named."""
    patterns = [(stop, False) for stop in stops]
    names = sorted({text for text in special.values() if text and any(text in stop for stop in stops)}, key=len)
    named = {text: chr(_FIRST_NAMED + place) for place, text in enumerate(names[-1024:])}
    for stop in stops:
        marked = stop
        for text in reversed(names[-1024:]):  # the longest first: one name may hold another
            marked = marked.replace(text, named[text])
        if marked != stop:
            patterns.append((marked, True))
    return patterns, named


def _found(text: str, stop: str, places: Sequence[int]) -> tuple[int, int] | None:
    """Where `stop` begins and ends, in `places`; special tokens before its end belong to it."""
    at = text.find(stop)
    return None if at < 0 else (places[at], places[at + len(stop) - 1] + 1)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
