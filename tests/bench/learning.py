"""What a drafter gains that learns from one user's runs: a real ring of processes, one user's kind of question.

python -m tests.bench.learning ask --state DIR        24 answers, kept for learning
swarm draft learn --state DIR/requester --minutes 10 --threads 1
python -m tests.bench.learning compare --state DIR    fresh questions, by either drafter in turns

The questions are those of somebody who asks for SQL over a few tables. Greedy answers of 64 tokens at most on two
nodes, 100 ms apart. Prints tokens per pass of each and of all; the tokens must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from contextlib import aclosing
from pathlib import Path

from draft.asset import default_drafter
from swarm.base.config import MemberConfig, user_models
from swarm.client.client import Requester, RequesterConfig
from swarm.run.api import Finished, RunRequest, RunResult
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

TABLES = {
    "orders": ("order_id", "customer_id", "created_at", "status", "total"),
    "customers": ("customer_id", "name", "city", "email"),
    "products": ("product_id", "title", "category", "price"),
    "invoices": ("invoice_id", "order_id", "paid_at", "amount"),
}
TASKS = (
    "all {a} of {t} where {b} is not null, newest first",
    "how many rows of {t} there are for each {b}",
    "the ten {t} with the highest {a}",
    "every {t} together with its {b}, joined with {u}",
    "the average {a} of {t} by {b}",
    "{t} that have no row in {u}",
    "the sum of {a} by {b} for {t} of the last thirty days",
    "a new row in {t} with {a} and {b}",
)
TOKENS, RTT_MS = 64, 100.0


def questions(count: int, seed: int) -> list[str]:
    """Different ones; the same for the same seed."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        t, u = rng.sample(sorted(TABLES), 2)
        a, b = rng.sample(TABLES[t], 2)
        task = rng.choice(TASKS).format(a=a, b=b, t=t, u=u)
        columns = ", ".join(TABLES[t])
        found[
            f"The table {t} has the columns {columns}. Write a SQL query for {task}. Answer with the query alone."
        ] = None
    return list(found)


async def answer(requester: Requester, question: str) -> RunResult:
    ids = requester.encode_chat([{"role": "user", "content": question}])
    async with aclosing(requester.run(RunRequest(tuple(ids), max_tokens=TOKENS, receipt=False))) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the run had no end")


async def ask(state: Path, invite: str, count: int) -> None:
    config = RequesterConfig(
        MemberConfig(state / "requester", user_models(), invite, lan=False), keep_for_learning=True
    )
    async with await Requester.connect(config) as requester:
        for number, question in enumerate(questions(count, 1)):
            result = await answer(requester, question)
            print(number, result.new_tokens, f"{result.tokens_per_pass:.2f}", repr(result.text[:70]), file=sys.stderr)


async def compare(state: Path, invite: str, count: int, old: Path | None, new: Path | None) -> dict[str, object]:
    known = set(questions(24, 1))
    fresh = [question for question in questions(24 + count + 20, 2) if question not in known][:count]
    member = MemberConfig(state / "requester", user_models(), invite, lan=False)
    async with await Requester.connect(RequesterConfig(member, draft_model=new and str(new))) as learned:
        print(learned.drafts, file=sys.stderr)
        shipped = old or default_drafter(learned.manifest)
        async with await Requester.connect(RequesterConfig(member, draft_model=str(shipped))) as before:
            sums = {"before": [0, 0], "after": [0, 0]}
            for number, question in enumerate(fresh):
                pair = {"before": before, "after": learned}
                told = {}
                for name in sorted(pair, reverse=number % 2 == 0):
                    told[name] = await answer(pair[name], question)
                    sums[name][0] += told[name].new_tokens
                    sums[name][1] += told[name].passes
                assert told["before"].token_ids == told["after"].token_ids
                print(number, {n: round(r.tokens_per_pass, 2) for n, r in told.items()}, file=sys.stderr)
    return {name: {"tokens": t, "passes": p, "tokens per pass": round(t / p, 3)} for name, (t, p) in sums.items()}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("ask", "compare"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--count", type=int)
    parser.add_argument("--before", type=Path, help="a drafter (default: the one that ships)")
    parser.add_argument("--after", type=Path, help="a drafter (default: the one that learned)")
    arguments = parser.parse_args()
    swarm = LocalSwarm(arguments.state / "nodes", rtt_ms=RTT_MS)
    async with local_ring(swarm, split_layers(30, 2)) as ring:
        if arguments.what == "ask":
            await ask(arguments.state, ring.invite, arguments.count or 24)
        else:
            print(
                json.dumps(
                    await compare(
                        arguments.state, ring.invite, arguments.count or 10, arguments.before, arguments.after
                    )
                )
            )


if __name__ == "__main__":
    asyncio.run(main())
