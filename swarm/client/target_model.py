"""The model that a swarm serves, as far as a requester has it on its own machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Report, silent
from swarm.client.drafters import Drafters, load_drafters
from swarm.mesh.saved import Saved
from swarm.model.compiling import Compiler
from swarm.model.device import choose_device
from swarm.model.dtype import dtype_name
from swarm.model.files.checkpoint import Checkpoint, end_tokens, load_tokenizer, open_model
from swarm.model.files.generation_config import generation_defaults
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.held import Vocabulary
from swarm.model.quant.native import warn_of_none
from swarm.model.text.decoder import PlainText
from swarm.model.text.spelling import special_tokens
from swarm.model.text.template import PLAIN_CHAT, TemplateOptions, TemplateRenderer
from swarm.model.text.tokenizer import Tokenizer
from swarm.model.weights_as import choose_weights
from swarm.run.api import Draft
from swarm.run.private_layers import PrivateBlocks


@dataclass(frozen=True)
class Target:
    """Tokenizer, end tokens and drafters of a model, and its checkpoint for more of it.

    ref      what the swarm calls the model
    models   folder of the model store
    generation_defaults   how its makers want it sampled
    """

    ref: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    eos: frozenset[int]
    drafters: Drafters
    models: Path
    generation_defaults: Mapping[str, float] = field(default_factory=dict)
    templates: TemplateRenderer = field(default_factory=TemplateRenderer)

    @property
    def manifest(self) -> Manifest:
        """The model's content identity."""
        return self.checkpoint.manifest

    @property
    def digest(self) -> bytes:
        """Of the manifest, 32 bytes."""
        return bytes.fromhex(self.manifest.digest)

    def require_served(self, saved: Saved) -> None:
        """Raises ModelError when the swarm serves another model than this copy."""
        if saved.model != self.digest:
            raise ModelError(
                f"the swarm serves {saved.ref} with digest {saved.model.hex()[:16]}, but the copy on this machine has "
                f"{self.digest.hex()[:16]}; remove it and pull it again: swarm model pull {saved.ref}"
            )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of raw text."""
        return tuple(int(t) for t in self.tokenizer(text)["input_ids"])

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: TemplateOptions = PLAIN_CHAT,
    ) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template.

        Raises ModelError when it has none, UsageError when it refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.ref} has no chat template; use --raw")
        return self.templates.encode(self.tokenizer, messages, options)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return PlainText(self.tokenizer).decode(ids)

    @cached_property
    def special(self) -> Mapping[int, str]:
        """Names of the ids that `decode` leaves out."""
        return special_tokens(self.tokenizer)

    @cached_property
    def compiler(self) -> Compiler:
        """What holds answers of this model to constraints."""
        return Compiler(lambda: Vocabulary(self.tokenizer, self.manifest.vocab_size, self.eos))

    def require_private(self, count: int) -> None:
        """Raises UsageError when `count` layers at either end leave none between them, or cannot be kept apart."""
        n, ties = self.manifest.n_layers, self.manifest.ties
        if ties.by_token:
            raise UsageError(
                f"expected no --private for {self.manifest.model}: each of its layers looks up the text's token ids, "
                "so every node sees them"
            )
        if not ties.forbidden.isdisjoint((count, n - count)):
            self.manifest.check_cut(count, n - count)
        if 2 * count >= n:
            raise UsageError(f"expected --private under {(n + 1) // 2} for a model of {n} layers, found {count}")

    def private_blocks(self, count: int, dtype: torch.dtype) -> PrivateBlocks:
        """The first and the last `count` layers, loaded. Raises ModelError."""
        from swarm.model.block import load_block  # transformers' modelling, which only private layers need here

        n, device = self.manifest.n_layers, choose_device(None)
        store = ModelStore(self.models)
        weights = choose_weights("auto", dtype_name(dtype), device)
        head, tail = (
            load_block(open_model(self.ref, store, span), *span, device, dtype, weights=weights)
            for span in ((0, count), (n - count, n))
        )
        return PrivateBlocks(head, tail)


def load_target(
    ref: str,
    models: Path,
    draft: Draft,
    draft_model: str | None,
    draft_gpu: int | None,
    report: Report = silent,
    learning: Path | None = None,
) -> Target:
    """Tokenizer, embedding and drafter of a model. `learning`: where drafters lie that learned from runs of their user.
    Raises UsageError for a drafter that does not fit."""
    store = ModelStore(models)
    warn_of_none(report)
    checkpoint = open_model(ref, store, (0, 1), report)
    tokenizer = load_tokenizer(ref, store, report)
    eos, defaults = end_tokens(checkpoint, store, ref), generation_defaults(store, ref)
    learned = None if learning is None else learning / checkpoint.manifest.digest
    where = store.path(ref)
    drafters = load_drafters(
        draft, draft_model, draft_gpu, checkpoint, tokenizer, store, report, eos, where, learned=learned
    )
    return Target(ref, checkpoint, tokenizer, eos, drafters, models, defaults)
