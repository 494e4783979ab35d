"""What a requester is told when it is made: plain data, which loads no model library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.config import GPU, MemberConfig, log_help
from swarm.base.events import Report, silent
from swarm.base.option import Number, like, option
from swarm.base.paths import folder_to_write
from swarm.client.route_policy import RouteRules
from swarm.run.api import Draft, RunRequest

if TYPE_CHECKING:
    from draft.run_shelf import RunShelf
    from swarm.client.target_model import Target


MOST_LEARNING_BYTES = 64 << 20


@dataclass(frozen=True)
class RequesterConfig:
    """Who asks, and with which drafter.

    draft_model    None: the one that ships for the model
    keep_s         how long stages are asked to hold a closed run, for one that begins alike; 0: not at all
    keep_receipts_s  after how long receipts in the state folder are removed; None: never
    keep_for_learning  finished runs are kept, readably, for `swarm draft learn`; learning_bytes: at most so many bytes
    rules          whom requests may pass through
    log            folder of a transparency log that receipts are entered in; None: they are not
    await_news     connecting waits a moment until every layer is known to be held; runs wait for what is missing
    """

    member: MemberConfig
    draft: Draft = like(RunRequest, "draft")
    draft_model: str | None = option(
        None,
        "a small model, of any tokenizer: folder, short name or hub id (default: one beside the model, the one shipped "
        "for it, a smaller one here with its tokenizer, or the default model where it is here)",
        "REF",
        group="speculation",
    )
    draft_gpu: int | None = option(None, "draft on CUDA device N", "N", read=GPU, group="speculation")
    await_news: bool = True
    keep_s: float = 0.0
    keep_receipts_s: float | None = option(
        None,
        "remove receipts and their secrets from the state folder after so many days (default: keep all)",
        "DAYS",
        name="--keep-receipts",
        read=Number(float, 0, 36_500, "a number of days", scale=86_400.0),
        group="receipt",
    )
    keep_for_learning: bool = option(
        False,
        "keep what is asked and answered for `swarm draft learn`: readable on this machine, in learning/ of the state "
        "folder, until swarm draft learn --forget deletes it. Not runs with --private or --private-text. A gateway "
        "keeps those of all who ask it",
        group="learning",
    )
    learning_bytes: int = option(
        MOST_LEARNING_BYTES,
        "most megabytes of kept runs; the oldest go (default: 64)",
        "MB",
        name="--learning-space",
        read=Number(float, 0.1, 1_000_000, "megabytes", scale=1 << 20),
        group="learning",
        shown="64",
    )
    rules: RouteRules = RouteRules()
    log: Path | None = option(
        None,
        log_help("each receipt's close", "; with several --swarm in folders 1, 2, ... below it"),
        "DIR",
        read=folder_to_write,
        group="receipt",
    )

    def load(self, ref: str, report: Report = silent) -> Target:
        """The model `ref` with the drafter that is asked for. Raises UsageError for a drafter that does not fit."""
        from swarm.client.target_model import load_target

        learning = self.shelf().folder
        return load_target(ref, self.member.models, self.draft, self.draft_model, self.draft_gpu, report, learning)

    def shelf(self) -> RunShelf:
        """Where runs are kept for learning, and what was learned from them."""
        from draft.run_shelf import FOLDER, RunShelf

        return RunShelf(self.member.state / FOLDER, self.learning_bytes)
