"""The long soak: a swarm of real processes under churn for hours, its figures kept line by line, and a report of them.

`python -m tests.soak --hours 10` (`make soak HOURS=10`) runs it and goes on where an earlier one was cut off; `churn`
disturbs and asks, `footprint` measures, `ledger` keeps and sums up. `visitors` makes hours of coming and going in
minutes, and `inside` looks into the process that they come to.
"""
