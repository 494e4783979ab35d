"""A model's tokenizer as this program uses one.

`Tokenizer` is what transformers' own tokenizers do. `FastTokenizer` does the same with the `tokenizers` library alone,
from plain data: importing transformers takes seconds of a processor, and a requester needs it for nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import tokenizers

_CHECKED = (
    "",
    " ",
    "Hello, world!  Two  spaces,\ttabs\nand\r\nlines.\n\n",
    "naïve façade — “quotes” … ½ ﬁ e\u0301 \u200b\u00a0",
    "日本語のテキスト 中文，한국어 ไทย हिन्दी العربية",
    "👩\u200d💻🇩🇪 \U0001f9ea\U000f0000",
    "def f(x):\n    return x ** 2  # 3.14159, 0xFF, 1e-9\n",
    "<s></s><|im_start|>user\nhi<|im_end|>\n<|endoftext|><unk><pad><bos><eos>[INST]",
    " leading and trailing ",
    "a" * 70 + "1234567890" * 3,
    "I'm you're we'll DON'T they'd",
    "\x00\x07\ufffd",
)
"""Texts on which a tokenizer of ours must agree with transformers': scripts, spaces, names of special tokens."""

_OWN_METHODS = (
    "__call__ _encode_plus encode decode _decode convert_ids_to_tokens _convert_id_to_token get_vocab __len__ "
    "added_tokens_decoder backend_tokenizer get_chat_template special_tokens_map bos_token eos_token eos_token_id "
    "__getattr__"
).split()
"""What a class may not do in a way of its own, if `FastTokenizer` is to stand for it."""


class Tokenizer(Protocol):
    """Text to ids and back."""

    chat_template: Any
    """The template of a conversation, or several by name; None where the model has none."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The tokens that have a role ("bos_token"), as templates are given them."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens beside the vocabulary's own, by id; each has `content` and `special`."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """A mapping with the ids of a text under "input_ids"."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> Any:
        """The text of ids."""

    @property
    def bos_token(self) -> str | None:
        """The name of what begins a text, where the model has one."""

    @property
    def eos_token(self) -> str | None:
        """The name of what ends a text, where the model has one."""

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""

    def convert_ids_to_tokens(self, ids: int | list[int]) -> Any:
        """The name of an id, or of each; None for one that is not there."""

    def get_vocab(self) -> dict[str, int]:
        """The ids of all names."""

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The template to use. Raises ValueError where several are there and none is the default."""

    def __len__(self) -> int:
        """How many ids there are."""


@dataclass(frozen=True)
class TokenizerData:
    """All that a `FastTokenizer` is made of.

    backend   the JSON of a `tokenizers.Tokenizer`
    roles     special tokens by role
    template  of a conversation, or several by name, or None
    split     special tokens in a text are split as other text
    """

    backend: str
    roles: Mapping[str, str]
    template: str | Mapping[str, str] | None
    split: bool

    @classmethod
    def from_json(cls, found: Any) -> TokenizerData:
        """What `dataclasses.asdict` gave, after a trip through JSON. Raises KeyError, TypeError."""
        template = found["template"]
        if not isinstance(found["backend"], str) or not (template is None or isinstance(template, str | dict)):
            raise TypeError("expected a tokenizer's JSON and a template")
        roles = {str(role): str(token) for role, token in dict(found["roles"]).items()}
        return cls(found["backend"], roles, template, bool(found["split"]))


class FastTokenizer:
    """Implements `Tokenizer`. Raises ValueError for data that makes no tokenizer."""

    def __init__(self, data: TokenizerData) -> None:
        try:
            self.backend_tokenizer = tokenizers.Tokenizer.from_str(data.backend)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"expected the JSON of a tokenizer: {error}") from error
        self.backend_tokenizer.encode_special_tokens = data.split
        self.chat_template: Any = data.template
        self._roles = dict(data.roles)

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        return dict(self._roles)

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        found: Mapping[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        (found,) = self.backend_tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(found.ids)

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        if clean_up_tokenization_spaces:
            raise ValueError("expected spaces to stay as they are (clean_up_tokenization_spaces=False)")
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    @property
    def bos_token(self) -> str | None:
        return self._roles.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self._roles.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        name = self.eos_token
        return None if name is None else self.backend_tokenizer.token_to_id(name)

    def convert_ids_to_tokens(self, ids: int | list[int]) -> Any:
        name = self.backend_tokenizer.id_to_token
        return name(ids) if isinstance(ids, int) else [name(token) for token in ids]

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        templates = self.chat_template
        if templates is None:
            raise ValueError("this tokenizer has no chat template")
        if not isinstance(templates, Mapping):
            return str(templates)
        name = "tool_use" if tools is not None and "tool_use" in templates else "default"
        if name not in templates:
            raise ValueError(f"expected a template named default, found {', '.join(sorted(templates))}")
        return str(templates[name])

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))


def data_of(tokenizer: Any) -> TokenizerData | None:
    """What makes a `FastTokenizer` that does what this tokenizer of transformers does; None where none does.

    Its class must do everything in the usual way, and both must agree on texts of many kinds.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if any(getattr(kind, name, None) is not getattr(PreTrainedTokenizerFast, name, None) for name in _OWN_METHODS):
        return None
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    data = TokenizerData(
        backend.to_str(),
        dict(tokenizer.special_tokens_map),
        copy.deepcopy(tokenizer.chat_template),
        bool(tokenizer.split_special_tokens),
    )
    return data if agree(FastTokenizer(data), tokenizer) else None


def agree(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids, texts, names and templates for texts of many kinds."""
    for text in _CHECKED:
        for around in (False, True):
            ids = [int(token) for token in theirs(text, add_special_tokens=around)["input_ids"]]
            if list(ours(text, add_special_tokens=around)["input_ids"]) != ids:
                return False
            for skip in (False, True):
                told = [
                    one.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                    for one in (ours, theirs)
                ]
                if told[0] != told[1]:
                    return False
    same = ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    added = [{i: (t.content, t.special) for i, t in one.added_tokens_decoder.items()} for one in (ours, theirs)]
    return same and added[0] == added[1] and ours.chat_template == theirs.chat_template
