"""Prompts for models that write what is missing between two texts, by the marks that they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.model.text.tokenizer import Tokenizer

_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)
_ENDS = frozenset("<|endoftext|> <|fim_pad|> <fim_pad> <fim-pad> <|repo_name|> <|file_sep|> <|file_separator|>".split())
"""What models say where the missing part ends, beside their own end of a text."""
_REPOSITORY, _FILE = "<|repo_name|>", "<|file_sep|>"


@dataclass(frozen=True)
class File:
    """Another text that the one to be filled in belongs with."""

    name: str
    text: str


@dataclass(frozen=True)
class InfillMarks:
    """What stands before the text before, before the text behind, and where the missing part begins; `ends`: ids that
    end it; `files`: whether there are marks for further files."""

    before: str
    behind: str
    here: str
    ends: tuple[int, ...]
    files: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> InfillMarks | None:
        """Those of a model's vocabulary; None for one that knows none."""
        known = {str(entry.content): int(token) for token, entry in tokenizer.added_tokens_decoder.items()}
        marks = next((family for family in _FAMILIES if known.keys() >= set(family)), None)
        if marks is None:
            return None
        ends = tuple(sorted(known[name] for name in {*_ENDS, *marks} & known.keys()))
        return cls(*marks, ends, {_REPOSITORY, _FILE} <= known.keys())

    def prompt(self, before: str, behind: str, files: Sequence[File] = ()) -> str:
        """The prompt whose continuation is the missing part."""
        asked = f"{self.before}{before}{self.behind}{behind}{self.here}"
        if not files:
            return asked
        if not self.files:
            return self.before + "".join(f"{file.text}\n" for file in files) + asked.removeprefix(self.before)
        told = "".join(f"{_FILE}{file.name}\n{file.text}" for file in files)
        return f"{_REPOSITORY}project\n{told}{_FILE}file\n{asked}"
