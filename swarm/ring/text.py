"""Token ids to text as they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MAX_UNFINISHED = 8
"""Tokens after which a replacement character is the text and not half of a character."""


class TextStream:
    """Feeds on committed tokens and gives the text that they add.

    Text that might be the beginning of a stop string is held back until it is decided, so a reader never sees part
    of one. `decode` turns ids into text; it is called on a short window, so that a token's look (a leading space,
    a half character) is that of its neighbourhood, and long answers cost no more per token than short ones.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._window: list[int] = []
        self._settled = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Text that this token adds (may be empty). After `stopped` nothing more is added."""
        if self.stopped:
            return ""
        self._window.append(token)
        before = self._decode(self._window[: self._settled])
        now = self._decode(self._window)
        if now.endswith(UNFINISHED) and len(self._window) - self._settled < MAX_UNFINISHED:
            return ""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        if self.stopped:
            return ""
        before = self._decode(self._window[: self._settled])
        rest = self._release(self._decode(self._window)[len(before) :])
        if self.stopped:
            return rest
        rest += self._held
        self.text += self._held
        self._held = ""
        return rest

    def _release(self, added: str) -> str:
        self._held += added
        cut = min((at for at in (self._held.find(s) for s in self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            given, self._held = self._held[:cut], ""
        else:
            keep = max((_overlap(self._held, s) for s in self._stop), default=0)
            given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += given
        return given


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
