"""Small estimators for a run's costs, and the trial that holds bold against calm."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Mean:
    """Exponential mean that starts at a guess."""

    value: float
    gain: float = 0.15

    def add(self, sample: float) -> None:
        self.value += self.gain * (sample - self.value)


@dataclass
class Floor:
    """The least of recent samples: what an idle pipe takes. Follows decreases quickly, increases slowly.

    A sample taken `alone` has no queueing in it, so an increase that it shows is believed sooner.
    """

    value: float
    measured: bool = False

    def add(self, sample: float, alone: bool) -> None:
        if not self.measured:
            self.value, self.measured = sample, True
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
    """Whether to speculate boldly or to stay calm, decided by trying both when boldness does not clearly pay.

    Costs that no model knows (drafter and stages on the same cores, a link that others load) show in one number only:
    tokens per time. While that stays well over what plain passes would give, nothing is tried. Otherwise a few calm
    passes are measured, the better way is kept, and the other one is tried again later, ever more rarely.
    All lengths are in passes.
    """

    BOLD_FIRST, CALM_TEST, SKIP = 12.0, 5.0, 1.5
    CLEAR = 1.4
    AGAIN, MOST = 32.0, 256.0

    def __init__(self) -> None:
        self.calm = False
        self._keep = self.BOLD_FIRST
        self._again = self.AGAIN
        self._passes = 0.0
        self._tokens = 0
        self._ms = 0.0
        self._other: float | None = None

    def committed(self, tokens: int, ms: float, pass_ms: float) -> None:
        """`tokens` in `ms`, where one plain pass takes about `pass_ms`."""
        self._passes += ms / pass_ms
        if self._passes > self.SKIP:  # what was in flight when the way changed still belongs to the old way
            self._tokens += tokens
            self._ms += ms
        if self._passes - self.SKIP < self._keep or self._ms <= 0.0:
            return
        rate = self._tokens / self._ms
        if self._other is not None:
            worse = rate < self._other
            self._settle(worse)
            self._other = None
        elif self.calm or rate * pass_ms < self.CLEAR:
            self._other = rate
            self._turn(self.BOLD_FIRST if self.calm else self.CALM_TEST)
        else:
            self._turn(self.BOLD_FIRST, stay=True)

    def _settle(self, worse: bool) -> None:
        """Both ways were tried: stay with this one, or go back to the other when this one is `worse`."""
        self._turn(self._again, stay=not worse)
        self._again = min(self.MOST, 2.0 * self._again)

    def _turn(self, keep: float, stay: bool = False) -> None:
        if not stay:
            self.calm = not self.calm
        self._keep, self._passes, self._tokens, self._ms = keep, self.SKIP if stay else 0.0, 0, 0.0
