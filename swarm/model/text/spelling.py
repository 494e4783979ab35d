"""What single tokens of a vocabulary are: their bytes, and which of them are for programs and not for readers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from swarm.model.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def special_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """Text by id of the tokens that decoding without special tokens leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {int(token): str(entry.content) for token, entry in added.items() if entry.special}


class Spelling:
    """Bytes of token ids, read from the vocabulary: half a character has bytes too, which decoding cannot tell.

    exact         whether the bytes of an answer's tokens, joined, are its text (byte-level and sentencepiece
                  vocabularies); others are spelled by decoding
    drops_space   whether decoding drops a space at the beginning of a text (sentencepiece)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.special = special_tokens(tokenizer)
        parts = _decoder_parts(tokenizer)
        kinds = {part.get("type") for part in parts}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._replaced = [
            (part["pattern"]["String"], part["content"])
            for part in parts
            if part.get("type") == "Replace" and "String" in part.get("pattern", {})
        ] + [(part["replacement"], " ") for part in parts if part.get("type") == "Metaspace"]
        self.exact = self._byte_level or bool(self._replaced)
        self.drops_space = any(
            (part.get("type") == "Strip" and part.get("start", 0) > 0 and part.get("content") == " ")
            or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
            for part in parts
        )
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Bytes of one id, of special tokens their name; empty for an id that the vocabulary does not have."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def label(self, token: int) -> str:
        """A readable name: its text, or for part of a character `bytes:\\xf0\\x9f`, as OpenAI's API writes them."""
        data = self.bytes_of(token)
        try:
            return data.decode() if data else f"token_id:{token}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _read(self, token: int) -> bytes:
        if token in self.special:
            return self.special[token].encode()
        try:
            piece = self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, OverflowError, KeyError, ValueError):
            piece = None
        if not isinstance(piece, str):
            return b""
        byte = _BYTE.fullmatch(piece)
        if byte and (self._byte_fallback or not self.exact):
            return bytes([int(byte[1], 16)])
        if self._byte_level:
            codes = [_BYTE_OF.get(char) for char in piece]
            return piece.encode() if None in codes else bytes(code for code in codes if code is not None)
        if self.exact:
            for pattern, content in self._replaced:
                piece = piece.replace(pattern, content)
            return piece.encode()
        return self._decoded(token).encode()

    def _decoded(self, token: int) -> str:
        """Text that this token adds after another one."""
        anchor = self._tokenizer.encode("a", add_special_tokens=False)
        before, now = (
            str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in (anchor, [*anchor, token])
        )
        return now[len(before) :] if now.startswith(before) else now


def _decoder_parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The steps of a fast tokenizer's decoder, as plain data; empty when it has none."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state.get("type") == "Sequence" else [state]


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (Radford et al., GPT-2, 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + place): b for place, b in enumerate(others)}}


_BYTE_OF = _byte_alphabet()
