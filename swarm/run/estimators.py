"""Small estimators for a run's costs, and the trial that holds bold against calm."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Mean:
    """Exponential mean that starts at a guess; the first samples count more."""

    value: float
    gain: float = 0.15
    samples: int = 0

    def add(self, sample: float) -> None:
        self.samples += 1
        self.value += max(self.gain, 1.0 / (1.0 + self.samples)) * (sample - self.value)


@dataclass
class Floor:
    """The least of recent samples: what an idle pipe takes. Follows decreases quickly, increases slowly.

    A sample taken `alone` has no queueing in it, so an increase that it shows is believed sooner. The guess at the
    start is believed down to half of the first sample: that one may have been taken in a crowd.
    """

    value: float
    measured: bool = False

    def add(self, sample: float, alone: bool) -> None:
        if not self.measured:
            self.value, self.measured = min(sample, max(self.value, 0.5 * sample)), True
        elif sample < self.value:
            self.value += 0.5 * (sample - self.value)
        else:
            self.value += (0.1 if alone else 0.005) * (sample - self.value)


class Slope:
    """What one more row costs: least squares of time over rows, old samples fading, held near a guess by `weight`.

    `weight` is in rows squared: the guess counts like that much spread of observed frame sizes.
    """

    def __init__(self, guess: float, weight: float = 1500.0, fade: float = 0.99) -> None:
        self._guess, self._weight, self._fade = guess, weight, fade
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, rows: int, ms: float) -> None:
        fade = self._fade
        self._n = self._n * fade + 1.0
        self._x = self._x * fade + rows
        self._y = self._y * fade + ms
        self._xx = self._xx * fade + rows * rows
        self._xy = self._xy * fade + rows * ms

    @property
    def value(self) -> float:
        """ms per row, between a quarter of the guess and twenty times it."""
        n = max(1.0, self._n)
        spread = self._xx - self._x * self._x / n
        common = self._xy - self._x * self._y / n
        slope = (common + self._weight * self._guess) / (spread + self._weight)
        return min(20.0 * self._guess, max(0.25 * self._guess, slope))


class Trial:
    """Which of several ways to run makes most tokens per time, found by trying, when the first one is in doubt.

    Costs that no model knows (drafter and stages on the same cores, a link that others load) show in one number only:
    tokens per time. While the first way is beyond doubt, nothing else is tried. Otherwise a neighbouring way runs for
    a few passes, the better one is kept, and the question comes back later, ever more rarely. Lengths are in passes.
    """

    FIRST, TEST, SKIP = 12.0, 6.0, 1.5
    AGAIN, MOST = 32.0, 256.0
    MEMORY = 0.7

    def __init__(self, ways: int) -> None:
        self.way = 0
        self._seen = [[0.0, 0.0] for _ in range(ways)]
        self._home: int | None = None
        self._down = True
        self._keep = self.FIRST
        self._again = self.AGAIN
        self._passes = self._tokens = self._ms = 0.0

    def committed(self, tokens: int, ms: float, pass_ms: float, doubt: bool) -> None:
        """`tokens` in `ms`, where a plain pass takes about `pass_ms`; `doubt`: the first way may not be the best."""
        self._passes += ms / pass_ms
        if self._passes > self.SKIP:  # what was in flight when the way changed still belongs to the old way
            self._tokens += tokens
            self._ms += ms
        if self._passes - self.SKIP < self._keep or self._ms <= 0.0:
            return
        seen = self._seen[self.way]
        self._seen[self.way] = [seen[0] * self.MEMORY + self._tokens, seen[1] * self.MEMORY + self._ms]
        if self._home is not None:
            self._decide(self._home)
        elif len(self._seen) > 1 and (doubt or self.way > 0):
            self._try_neighbour()
        else:
            self._again = self.AGAIN
            self._go(self.way, self.FIRST)

    def _rate(self, way: int) -> float:
        tokens, ms = self._seen[way]
        return tokens / ms if ms else 0.0

    def _decide(self, home: int) -> None:
        self._home = None
        self._go(self.way if self._rate(self.way) > self._rate(home) else home, self._again)
        self._again = min(self.MOST, 2.0 * self._again)

    def _try_neighbour(self) -> None:
        last = len(self._seen) - 1
        if self.way in (0, last):
            self._down = self.way == 0
        self._home = self.way
        self._go(self.way + (1 if self._down else -1), self.TEST)
        self._down = not self._down

    def _go(self, way: int, keep: float) -> None:
        self._passes = self.SKIP if way == self.way else 0.0
        self.way, self._keep, self._tokens, self._ms = way, keep, 0.0, 0.0
