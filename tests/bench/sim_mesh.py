"""Membership and planning of large swarms in simulated time.

python -m tests.bench.sim_mesh                         # small tables, a minute
python -m tests.bench.sim_mesh --nodes 10000 --seconds 20 --only membership    # the large one: ten minutes, 4 GB
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.bench.sim_measures import coverage, membership
from tests.bench.sim_routes import routes


def main() -> None:
    parser = argparse.ArgumentParser(description="Membership and planning of large swarms in simulated time.")
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--churn", type=float, default=0.1, help="share of the nodes that end, and that join, per minute"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("membership", "coverage", "routes"))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    if chosen.only in (None, "membership"):
        results["membership"] = membership(chosen.nodes, chosen.seconds, chosen.churn, chosen.seed)
        print(json.dumps(results["membership"], indent=1), flush=True)
    if chosen.only in (None, "coverage"):
        results["coverage"] = [
            coverage(n, 300, c, chosen.churn, chosen.seed) for n, c in ((24, (8, 12)), (60, (8, 12)))
        ]
        print(json.dumps(results["coverage"], indent=1), flush=True)
    if chosen.only in (None, "routes"):
        serving = min(500, chosen.nodes // 2)
        results["routes"] = routes(chosen.nodes, serving, 25, chosen.seed)
        print(json.dumps(results["routes"], indent=1), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
