"""Processor time of a requester until it could draft its first token, by part: imports, model, tokenizer, drafter.

    python -m tests.bench.cold_start [--models FOLDER]

In a process of its own each time: imports count once. Run it in turn in two checkouts to compare them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from swarm.base.config import MemberConfig


def main() -> None:
    """Print the seconds of each part, and of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MemberConfig().models)
    given = parser.parse_args()
    marks = [("start", time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.process_time()))
        print(f"{name:12s} {marks[-1][1] - marks[-2][1]:6.2f} {marks[-1][1]:6.2f}", flush=True)

    import torch  # noqa: F401

    mark("torch")
    import swarm.client.client  # noqa: F401

    mark("the rest")
    from swarm.base.events import silent
    from swarm.client.drafters import load_drafters
    from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
    from swarm.model.files.named import DEFAULT_MODEL
    from swarm.model.files.store import ModelStore

    store = ModelStore(given.models)
    checkpoint = open_model(DEFAULT_MODEL, store, (0, 1))
    mark("model")
    tokenizer = load_tokenizer(DEFAULT_MODEL, store)
    end_tokens(checkpoint, store, DEFAULT_MODEL)
    mark("tokenizer")
    load_drafters("auto", None, None, checkpoint, tokenizer, store, silent, beside=store.path(DEFAULT_MODEL))
    mark("drafter")


if __name__ == "__main__":
    main()
