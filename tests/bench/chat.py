"""Prompts of benchmarks as token ids, in the model's own chat template, as requesters render it."""

from __future__ import annotations

from contextlib import closing

from swarm.model.text.template import TemplateRenderer
from swarm.model.text.tokenizer import Tokenizer


def asked(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text as what a user says first, up to where the answer begins. Raises UsageError."""
    with closing(TemplateRenderer()) as renderer:
        return [list(renderer.encode(tokenizer, [{"role": "user", "content": text}])) for text in texts]
