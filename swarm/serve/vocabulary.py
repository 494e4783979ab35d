"""POST /tokenize and /detokenize, in the shapes of vLLM and llama-server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from swarm.base.errors import UsageError
from swarm.model.text.template import TemplateOptions
from swarm.serve.backend import Backend
from swarm.serve.chat_prompt import chat_ids
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import bad_field
from swarm.serve.fields import Fields
from swarm.serve.messages import read_messages, read_template_options, read_tools
from swarm.serve.parse import is_ids, read_turn
from swarm.serve.plan import check_ids, check_model
from swarm.serve.web import read_json

_TEXT = frozenset("model prompt content add_special_tokens add_special return_token_strs".split())
_CHAT = frozenset(
    "model messages tools tool_choice return_token_strs add_generation_prompt continue_final_message "
    "chat_template_kwargs reasoning_effort".split()
)


class VocabularyViews:
    """From text or a chat to token ids, and back."""

    def __init__(self, backend: Backend, config: GatewayConfig) -> None:
        self._backend = backend
        self._config = config

    async def tokenize(self, request: web.Request) -> web.Response:
        """Token ids of `prompt` (vLLM), `content` (llama-server) or `messages`, as a run would have them."""
        fields = Fields(await read_json(request, self._config))
        chat = fields.get("messages") is not None
        fields.only(_CHAT if chat else _TEXT)
        check_model(fields.text("model"), self._backend)
        if chat:
            ids = await self._chat(fields)
        else:
            name = "content" if fields.get("prompt") is None and fields.get("content") is not None else "prompt"
            text = fields.need_text(name)
            ids = await asyncio.to_thread(self._text, text, _wants_special(fields))
        body: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": self._backend.manifest.context}
        if fields.flag("return_token_strs"):
            body["token_strs"] = [str(token) for token in self._backend.tokenizer.convert_ids_to_tokens(ids)]
        return web.json_response(body)

    async def detokenize(self, request: web.Request) -> web.Response:
        """Text of token ids, special tokens included: under `prompt` (vLLM) and `content` (llama-server)."""
        fields = Fields(await read_json(request, self._config))
        fields.only(frozenset({"model", "tokens"}))
        check_model(fields.text("model"), self._backend)
        ids = fields.get("tokens")
        if not isinstance(ids, list) or not is_ids(ids):
            raise fields.wrong("tokens", "an array of token ids")
        check_ids(ids, self._backend.manifest.vocab_size, "tokens")
        text = await asyncio.to_thread(
            self._backend.tokenizer.decode, ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return web.json_response({"prompt": text, "content": text})

    def _text(self, text: str, special: bool) -> list[int]:
        if special:
            return [int(token) for token in self._backend.encode(text)]
        return [int(token) for token in self._backend.tokenizer.encode(text, add_special_tokens=False)]

    async def _chat(self, fields: Fields) -> list[int]:
        messages, tools = read_messages(fields), read_tools(fields)
        options, turn = read_template_options(fields), read_turn(fields, messages)
        if not getattr(self._backend.tokenizer, "chat_template", None):
            raise bad_field("messages", "this model has no chat template; send 'prompt'", "unsupported_parameter")
        try:
            found = await asyncio.to_thread(chat_ids, self._backend, messages, TemplateOptions(tools, options, turn))
        except UsageError as exc:
            raise bad_field("messages", str(exc)) from exc
        return [int(token) for token in found]


def _wants_special(fields: Fields) -> bool:
    """Whether the tokens that begin a prompt are added: vLLM's name for it, or llama-server's."""
    return fields.flag("add_special_tokens", True) and fields.flag("add_special", True)
