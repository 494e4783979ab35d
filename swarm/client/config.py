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
    from swarm.client.target_model import Target


@dataclass(frozen=True)
class RequesterConfig:
    """Who asks, and with which drafter.

    draft_model    None: the one that ships for the model
    keep_s         how long stages are asked to hold a closed run, for one that begins alike; 0: not at all
    keep_receipts_s  after how long receipts in the state folder are removed; None: never
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

        return load_target(ref, self.member.models, self.draft, self.draft_model, self.draft_gpu, report)
