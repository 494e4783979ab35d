"""How much to send and to draft: the controller of a run's speculation.

One price decides everything: `rate`, the tokens per millisecond that the run makes now. Whatever delays the run by x
ms costs x * rate tokens, so

- a drafted row is worth sending when the chance that it is right exceeds the price of the time that it adds;
- another draft step before a waiting send is worth it when the tokens it is expected to win exceed its time;
- a drafter whose proposals are never right wins nothing and is left alone: what remains is plain decoding. Now and then
  it is asked once, and after a rest it has another trial, since the text may have become one of a kind that it knows;
- when frames still get in each other's way, or all of this makes hardly more than plain passes would, streaming,
  waiting and plain rows are tried in turn and the best is kept.

Frames are paced by what the slowest stage can sustain: guessed from `Costs` and corrected by the times that stages
report. Where they report none, delay corrects it: when answers come later than an empty pipe would bring them, frames
queue somewhere, and the pace slows until they do not.
Nothing here reads a clock: `now` is in seconds, from any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draft.calibrate import Calibration
from swarm.planner.costs import Costs
from swarm.ring.frame import MAX_DRAFT_LEVELS
from swarm.run.estimators import Floor, Mean, Slope, Trial

_MOST_DELAY = 0.15
_MOST_SLOW = 8.0
_MOST_FRAME_FLOOR = 2.0
_CALM_FLOOR = 0.5
_LEAF_SHARE = 0.08
_NOTHING = 0.3
_NARROWING = 0.85
_WAYS = {"plain": ("calm",), "chain": ("wait", "calm"), "tree": ("wait", "calm"), "stream": ("stream", "wait", "calm")}
_HOPELESS = 0.06
_PATIENCE = 12.0
_RETRY = 24
_FIRST_REST_S, _LONGEST_REST_S = 30.0, 480.0
"""A trial is some two dozen draft steps. The first rest is that of a run or two, the longest lets a trial cost under a
hundredth of a drafter's time where nothing that it says is ever right."""
_TRIAL_WEIGHT = 2.0
_REDEEMED = 0.25


@dataclass(frozen=True)
class Setting:
    """Which of the strategies to run, and limits that a user may fix.

    mode      "plain": one row, wait. "chain": first choices only, wait. "tree": best first, wait. "stream": never wait
    rows      most drafted rows of one frame
    in_flight most drafted rows in the pipe at once (stream)
    width     most children asked for under one node
    leaves    most nodes expanded in one draft step
    depth     levels asked for in one draft step
    fixed     send exactly by `rows` and do not weigh costs: for comparisons such as "chain of 8"
    echo      propose what the target said on branches that lost (`draft.echo`)
    """

    mode: str = "stream"
    rows: int = 64
    in_flight: int = 256
    width: int = 8
    leaves: int = 8
    depth: int = 1
    fixed: bool = False
    echo: bool = True


def rests(calibration: Calibration, now: float) -> bool:
    """Whether a drafter is left alone at `now`: it was tried and never right, and its rest is not over.

    Kept in its calibration, which runs share: each rest is twice as long as the one before, until it is right again.
    After a rest it is believed again for a trial, whatever it did before.
    """
    if calibration.observations < _PATIENCE or calibration.coverage >= _HOPELESS:
        calibration.rests_until = None
        if calibration.observations >= _PATIENCE and calibration.coverage >= _REDEEMED:
            calibration.rest_s = 0.0
        return False
    if calibration.rests_until is None:
        calibration.rest_s = min(_LONGEST_REST_S, max(_FIRST_REST_S, 2.0 * calibration.rest_s))
        calibration.rests_until = now + calibration.rest_s
    if now < calibration.rests_until:
        return True
    calibration.rests_until = None
    calibration.begin_trial(_TRIAL_WEIGHT)
    return False


class Controller:
    """Measures a run and prices its speculation. Keep it between runs over the same ring to start well informed."""

    def __init__(self, costs: Costs, setting: Setting | None = None) -> None:
        self.costs = costs
        self.setting = setting or Setting()
        self._base = Floor(costs.pass_ms)
        self._inside = Floor(costs.inside_ms)
        self._queue = Mean(0.0)
        self._frame = Mean(1.0, 0.2)
        self._slow = 1.0
        self._draft = Mean(costs.draft_ms, 0.1)
        self._quick = Floor(costs.draft_ms)
        self._slowed = Mean(1.0, 0.1)
        self._tail = Mean(0.0, 0.2)
        self._row = Slope(costs.row_ms)
        self._rate = 1.0 / costs.pass_ms
        self._ways = _WAYS[self.setting.mode]
        self._trial = Trial(1 if self.setting.fixed else len(self._ways))

    # Measured

    def answered(
        self, latency_ms: float, rows: int, alone: bool, stages: Sequence[tuple[float, float]] | None = None
    ) -> None:
        """A frame of `rows` rows was answered after `latency_ms`; `alone`: the pipe was empty when it was sent.

        `stages`: (queued, computed) ms at each stage, where stages tell. Then delay on the way is not mistaken for
        frames queueing: links jitter, stages do not.
        """
        queued = sum(spent[0] for spent in stages) if stages else 0.0
        self._row.add(rows, latency_ms - queued)
        extra = (rows - 1) * self._row.value
        self._base.add(latency_ms - extra, alone)
        if stages:
            inside = queued + sum(computed for _, computed in stages) - extra
            self._inside.add(inside, alone)
            guess = self.costs.frame_ms + self.costs.frame_row_ms * rows
            self._frame.add(min(_MOST_SLOW, max(computed for _, computed in stages) / guess))
            self._queue.add(max(0.0, inside - self._inside.value))
        else:
            self._queue.add(max(0.0, latency_ms - extra - self._base.value))
            congested = self._queue.value > _MOST_DELAY * self._base.value
            self._slow = min(_MOST_SLOW, self._slow * 1.02) if congested else max(1.0, self._slow * 0.97)

    def drafted(self, step_ms: float, leaves: int) -> None:
        """One draft step for `leaves` nodes took `step_ms`."""
        single = max(0.01, step_ms) / (1.0 + _LEAF_SHARE * (leaves - 1))
        if single > _NOTHING * self._draft.value:  # else the drafter knew the answers and computed nothing
            self._quick.add(single, False)
            self._slowed.add(single / self._quick.value)
        self._draft.add(step_ms)

    def tail_drafted(self, took_ms: float, levels: int) -> None:
        """The tail drafted so many tokens ahead in `took_ms`, which the pass took longer for it."""
        self._tail.add(took_ms / max(1, levels))

    def committed(self, tokens: int, elapsed_ms: float, coverage: float) -> None:
        """`tokens` became certain in the `elapsed_ms` since the last time.

        `coverage`: chance that the deferred drafter's proposals hold the next token; 0 without one.
        """
        if elapsed_ms > 0:
            gain = min(1.0, elapsed_ms / (8.0 * self._base.value))
            self._rate += gain * (tokens / elapsed_ms - self._rate)
            other = self.waiting_rate(coverage) if self._ways[0] == "stream" else 0.0
            # A plain pass makes one token; how long it takes is well known unless drafting slows the passes seen.
            clear = max((1.1 + 0.3 * self.crowding) / self._base.value, other)
            doubt = self.crowding > 0.5 or self._rate < clear
            self._trial.committed(tokens, elapsed_ms, self._base.value, doubt)

    def waiting_rate(self, coverage: float) -> float:
        """Rough tokens per millisecond of a waiting tree of the best depth over a drafter of this coverage."""
        best, tokens, chance = 0.0, 1.0, 1.0
        for depth in range(1, 9):
            chance *= coverage * (1.0 if depth == 1 else _NARROWING)
            tokens += chance
            rows = min(self.setting.rows, 8 + 16 * (depth - 1))
            best = max(best, tokens / (self._base.value + depth * self._draft.value + rows * self.row_ms))
        return best

    # Decided

    @property
    def measured(self) -> bool:
        """Whether any pass was measured; before that the pace is a guess and a pipe is easily filled for seconds."""
        return self._base.measured

    @property
    def pass_ms(self) -> float:
        """Measured pass of one row through the empty ring."""
        return self._base.value

    @property
    def draft_ms(self) -> float:
        """Measured draft step."""
        return self._draft.value

    @property
    def crowding(self) -> float:
        """0 where drafting has cores of its own, 1 where it clearly takes them from somebody, likely from stages.

        A draft step that takes much longer than the quickest one did shares its cores.
        """
        return min(1.0, max(0.0, (self._slowed.value - 1.3) / 0.7))

    @property
    def rate(self) -> float:
        """Tokens per millisecond; never under what plain decoding would make."""
        return max(self._rate, 1.0 / self._base.value)

    @property
    def row_ms(self) -> float:
        """What one more row adds to a pass."""
        return self._row.value

    @property
    def way(self) -> str:
        """ "stream", "wait" or "calm": how to run now. A stream waits where that makes more tokens."""
        return self._ways[self._trial.way]

    @property
    def calm(self) -> bool:
        """Speculation does not pay at present: only near certainties are sent, and the deferred drafter rests."""
        return self.way == "calm"

    @property
    def waits(self) -> bool:
        """Whether to send nothing while an answer is due, and to gather drafts before that."""
        return self.way != "stream"

    @property
    def row_floor(self) -> float:
        """Least chance at which a drafted row is worth the time that it adds.

        Where cores are short everything waits for it, and drafting for it came out of the same cores.
        """
        if self.setting.fixed:
            return 0.0
        return _CALM_FLOOR if self.calm else min(_CALM_FLOOR, (1.0 + 1.5 * self.crowding) * self.rate * self.row_ms)

    @property
    def frame_floor(self) -> float:
        """Least expected number of right rows at which a frame that could wait is worth sending now.

        It delays others about as much as frames are seen to delay each other now: nothing in an idle pipe.
        """
        return 0.0 if self.setting.fixed else min(_MOST_FRAME_FLOOR, 2.0 * self.rate * self._queue.value)

    def interval_ms(self, rows: int) -> float:
        """Time to leave after a frame of `rows` rows before the next one that is not urgent."""
        return (self.costs.frame_ms + self.costs.frame_row_ms * rows) * self._frame.value * self._slow

    def worth_asking(self, calibration: Calibration, roots: int, now: float) -> bool:
        """Whether a drafter with this record is worth its time; one that never hits is tried now and then.

        `roots`: how many tokens became certain since it was asked.
        """
        if self.calm:
            return False
        return self.setting.fixed or roots >= _RETRY or not rests(calibration, now)

    def tail_levels(self, calibration: Calibration, roots: int, now: float) -> int:
        """How many tokens ahead the tail should draft: as far as a token is likelier to be right than the time that
        finding it adds to the pass is dear. 0 from a head that is never right, tried now and then.

        `roots`: how many tokens became certain since it was asked.
        """
        if self.setting.mode == "plain":
            return 0
        if self.setting.fixed:
            return min(MAX_DRAFT_LEVELS, self.setting.rows)
        if rests(calibration, now):
            return 1 if roots >= _RETRY else 0
        price = max(self.row_floor, self.rate * self._tail.value)
        chance, levels = calibration.coverage, 0
        while levels < MAX_DRAFT_LEVELS and chance > price:
            levels += 1
            chance *= calibration.coverage * _NARROWING
        return levels

    def worth_step(self, gain: float) -> bool:
        """Whether a draft step that is expected to find `gain` right tokens is worth what it takes from the ring."""
        return self.setting.fixed or gain > self.rate * self._draft.value * self.crowding

    def keep_drafting(self, chances: Sequence[float], best: float, gain: float, drafted_ms: float) -> bool:
        """A waiting send: is one more draft step, expected to win `gain` tokens, worth its time?

        `chances` of the rows that would go now, best first; `best` chance among the leaves that would be expanded;
        `drafted_ms` spent on drafting since the last answer.
        """
        if self.setting.fixed:
            return len(chances) < self.setting.rows or best > chances[self.setting.rows - 1]
        now = (1.0 + sum(chances)) / (self._base.value + drafted_ms + len(chances) * self.row_ms)
        return gain > now * self._draft.value
