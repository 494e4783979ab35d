"""What each API key has used and may still use. Decisions alone: the clock is an argument, in seconds.

A key's tokens of a day are counted by the hour. An answer counts with all the tokens that it may become from the moment
in which it is asked for, and with those that it became once it is over: limits are never overrun.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.serve.errors import ApiError
from swarm.serve.keys import ApiKey, KeyLimits

MINUTE_S, HOUR_S = 60.0, 3600.0
DAY_HOURS = 24


@dataclass
class _Used:
    """Of one key. `hours`: (number of the hour, tokens), oldest first, 25 at most."""

    recent: deque[float] = field(default_factory=deque)
    hours: deque[list[int]] = field(default_factory=deque)
    reserved: int = 0
    at_once: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0

    def forget(self, now: float) -> None:
        while self.recent and self.recent[0] <= now - MINUTE_S:
            self.recent.popleft()
        while self.hours and self.hours[0][0] <= now // HOUR_S - DAY_HOURS:
            self.hours.popleft()

    def spend(self, tokens: int, now: float) -> None:
        hour = int(now // HOUR_S)
        if not self.hours or self.hours[-1][0] != hour:
            self.hours.append([hour, 0])
        self.hours[-1][1] += tokens

    @property
    def of_the_day(self) -> int:
        return self.reserved + sum(tokens for _, tokens in self.hours)


@dataclass(frozen=True)
class Wanted:
    """One run that is asked for: tokens of its prompt, and the most that its answer may have."""

    prompt: int
    most: int


class Allowances:
    """By the names of keys; whoever has none (a gateway without keys) has no limits and no account."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._limits = {key.name: key.limits for key in keys}
        self._used = {key.name: _Used() for key in keys}

    def begin(self, user: str, runs: Sequence[Wanted], now: float) -> None:
        """A request with these runs, each of which must `end`. Raises ApiError 429, and then nothing has begun."""
        used = self._used.get(user)
        if used is None:
            return
        limits = self._limits[user]
        used.forget(now)
        asked = sum(run.prompt + run.most for run in runs)
        self._hold(limits, used, len(runs), asked, now)
        used.recent.append(now)
        used.requests += 1
        used.at_once += len(runs)
        used.reserved += asked

    def end(self, user: str, run: Wanted, tokens: int | None, now: float) -> None:
        """One of these runs is over, and its answer had so many tokens. None: it came to nothing, and costs nothing."""
        used = self._used.get(user)
        if used is None:
            return
        used.forget(now)
        used.at_once -= 1
        used.reserved -= run.prompt + run.most
        if tokens is None:
            return
        used.prompt_tokens += run.prompt
        used.tokens += tokens
        used.spend(run.prompt + tokens, now)

    @staticmethod
    def _hold(limits: KeyLimits, used: _Used, runs: int, asked: int, now: float) -> None:
        if limits.at_once is not None and used.at_once + runs > limits.at_once:
            text = f"this key may have {limits.at_once} runs at once, {used.at_once} are under way and {runs} asked for"
            raise ApiError(429, f"{text}; wait for one to end", "rate_limit_exceeded", retry_after=1)
        most = limits.requests_per_minute
        if most is not None and len(used.recent) >= most:
            wait = math.ceil(used.recent[0] + MINUTE_S - now) if used.recent else math.ceil(MINUTE_S)
            text = f"this key may ask {most} times a minute; try again in {wait} s"
            raise ApiError(429, text, "rate_limit_exceeded", retry_after=max(1, wait))
        most = limits.tokens_per_day
        if most is not None and used.of_the_day + asked > most:
            wait = _until_room(used, used.of_the_day + asked - most, now)
            text = (
                f"this key may use {most} tokens a day; {max(0, most - used.of_the_day)} are left and {asked} may be "
                "needed for prompt and answer. Lower max_tokens, or wait"
            )
            raise ApiError(429, text, "insufficient_quota", retry_after=wait)

    def headers(self, user: str, now: float) -> Mapping[str, str]:
        """What is left, in the headers that OpenAI's clients read."""
        used = self._used.get(user)
        if used is None:
            return {}
        used.forget(now)
        limits, told = self._limits[user], {}
        if limits.requests_per_minute is not None:
            told["x-ratelimit-limit-requests"] = str(limits.requests_per_minute)
            told["x-ratelimit-remaining-requests"] = str(max(0, limits.requests_per_minute - len(used.recent)))
            reset = used.recent[-1] + MINUTE_S - now if used.recent else 0.0
            told["x-ratelimit-reset-requests"] = f"{math.ceil(reset)}s"
        if limits.tokens_per_day is not None:
            told["x-ratelimit-limit-tokens"] = str(limits.tokens_per_day)
            told["x-ratelimit-remaining-tokens"] = str(max(0, limits.tokens_per_day - used.of_the_day))
            told["x-ratelimit-reset-tokens"] = f"{_until_room(used, used.of_the_day, now)}s"
        return told

    def usage(self, user: str, now: float) -> dict[str, Any] | None:
        """The account of a key since the gateway began; None for whoever has none."""
        used = self._used.get(user)
        if used is None:
            return None
        used.forget(now)
        limits = self._limits[user]
        return {
            "key": user,
            "requests": used.requests,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.tokens,
            "tokens_of_the_day": used.of_the_day,
            "runs_under_way": used.at_once,
            "limits": {
                "requests_per_minute": limits.requests_per_minute,
                "tokens_per_day": limits.tokens_per_day,
                "runs_at_once": limits.at_once,
            },
        }

    @property
    def names(self) -> Sequence[str]:
        """Of all keys."""
        return tuple(self._used)


def _until_room(used: _Used, wanted: int, now: float) -> int:
    """Seconds until so many of the day's tokens are forgotten, a day at most."""
    for hour, tokens in used.hours:
        wanted -= tokens
        if wanted <= 0:
            return max(1, math.ceil((hour + DAY_HOURS) * HOUR_S - now))
    return int(DAY_HOURS * HOUR_S)
