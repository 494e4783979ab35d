"""What is kept by run, member or crowd stays within its number, and what was used last is what stays."""

from __future__ import annotations

from draft.lm import LmDrafter
from swarm.client.drafters import MOST_IDLE, Drafters
from swarm.ring.opening_limits import MOST_KNOWN, OpeningQuota
from swarm.run.learned_costs import Drafting
from swarm.run.prefix_cache import MOST_KEPT, KeptRun, PrefixCache


def test_of_many_closed_runs_the_newest_are_kept_and_none_beyond_its_time() -> None:
    cache, route = PrefixCache(), ((b"node", 0, 1),)
    for run in range(10 * MOST_KEPT):
        cache.add(KeptRun(bytes([run]), route, tuple(range(run, run + 40)), until=float(run)))
    assert [kept.run[0] for kept in cache.kept] == list(range(9 * MOST_KEPT, 10 * MOST_KEPT))
    cache.best((1, 2), route, now=10.0 * MOST_KEPT)
    assert not cache.kept


def test_of_many_members_that_ask_for_openings_the_latest_are_known() -> None:
    quota = OpeningQuota(burst=10, member_rate=1)
    for number in range(5 * MOST_KNOWN):
        quota.charge(b"greedy", 1000, 0.0)
        quota.charge(number.to_bytes(4, "big"), 1, 0.0)
    assert len(quota._spent) == MOST_KNOWN
    assert quota.wait_s(b"greedy", 0.0) > 0, "a crowd does not make it forget who asks for much"


def test_after_a_crowd_few_drafters_stay() -> None:
    drafters = Drafters(lm=LmDrafter.__new__(LmDrafter))
    for _ in range(5 * MOST_IDLE):
        drafters.give_back(Drafting("lm", deferred=LmDrafter.__new__(LmDrafter)))
    assert len(drafters._idle) == MOST_IDLE
    taken = {id(drafters._take()) for _ in range(MOST_IDLE)}
    assert len(taken) == MOST_IDLE and not drafters._idle
