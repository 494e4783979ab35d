"""What the gateway needs of a requester; `swarm.node.node.Requester` fits without inheriting from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from swarm.base.swarm_state import SwarmState
from swarm.model.text.template import PLAIN_CHAT, TemplateOptions
from swarm.model.text.tokenizer import Tokenizer
from swarm.run.api import RunEvent, RunRequest


class ServedModel(Protocol):
    """The part of a manifest that the gateway reads. `context` in tokens; `digest` is hex sha256."""

    @property
    def model(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    def layer_bytes(self, layer: int) -> int: ...


class Backend(Protocol):
    """Runs, and what must be known to ask for one. Everything but `run` is quick or safe in a worker thread.

    May have `generation_defaults`: sampling options, by name, where a request names none; `memory_for(holes)`: bytes of
    free memory that whoever takes these layers should have; `invite()`: an invite that lets a node in and whether it is
    a secret, or None; `state_dir`: a folder for what the gateway keeps over a restart.
    """

    @property
    def manifest(self) -> ServedModel: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""

    @property
    def receipts_dir(self) -> Path: ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: TemplateOptions = PLAIN_CHAT,
    ) -> Sequence[int]:
        """Prompt ids of a chat. Raises UsageError when the template refuses it."""

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def run(self, request: RunRequest) -> AsyncIterator[RunEvent]:
        """One answer. Cancelling the consumer or closing the iterator frees the ring.

        Raises BusyError, CoverageError or RunError (before or during the answer).
        """

    def view(self) -> SwarmState:
        """Who is there."""

    def rows_in_flight(self) -> Mapping[str, int]:
        """Of runs under way, by run id."""
