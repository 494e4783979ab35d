"""POST /tokenize, /detokenize, /apply-template, GET /props, /tokenizer_info, as vLLM and llama-server have them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiohttp import web

from swarm import __version__
from swarm.base.errors import UsageError
from swarm.model.text.spelling import Spelling
from swarm.model.text.template import TemplateOptions
from swarm.serve.backend import Backend
from swarm.serve.body import read, wrong
from swarm.serve.chat_prompt import Message, chat_ids
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import bad_field
from swarm.serve.messages import instructed, read_messages, read_template_options, read_tools
from swarm.serve.parse import parse_chat_untrusted, prefilled, read_turn
from swarm.serve.plan import check_ids, check_model
from swarm.serve.requests import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from swarm.serve.web import ALIAS_PROMPT, IGNORED, read_json


class VocabularyViews:
    """From text or a chat to token ids, and back."""

    def __init__(self, backend: Backend, config: GatewayConfig) -> None:
        self._backend = backend
        self._config = config
        self._spelling: Spelling | None = None

    async def tokenize(self, request: web.Request) -> web.Response:
        """Token ids of `prompt` (vLLM), `content` (llama-server) or `messages`, as a run would have them."""
        body = await read_json(request, self._config)
        asked: TokenizeChatBody | TokenizeTextBody
        if isinstance(body, dict) and body.get("messages") is not None:
            asked = read(TokenizeChatBody, body)
            check_model(asked.model, self._backend)
            ids = await self._chat(asked, request.get(ALIAS_PROMPT, ""))
        else:
            asked = read(TokenizeTextBody, body)
            check_model(asked.model, self._backend)
            text = asked.content if asked.prompt is None else asked.prompt
            if text is None:
                raise wrong("prompt", "a string", None)
            ids = await asyncio.to_thread(self._text, text, _wants_special(asked))
        told: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": self._backend.manifest.context}
        if asked.return_token_strs:
            told["token_strs"] = [str(token) for token in self._backend.tokenizer.convert_ids_to_tokens(ids)]
        if isinstance(asked, TokenizeTextBody) and asked.with_pieces:
            told["tokens"] = [{"id": token, "piece": self._piece(token)} for token in ids]
        return web.json_response(told)

    async def count(self, request: web.Request) -> web.Response:
        """How many tokens the prompt of a chat has (llama-server)."""
        chat = parse_chat_untrusted(prefilled(await read_json(request, self._config)), self._config)
        check_model(chat.wanted.model, self._backend)
        ids = await self._chat_ids(
            instructed(chat.messages, request.get(ALIAS_PROMPT, "")),
            TemplateOptions(chat.tools, chat.options, chat.turn),
        )
        return web.json_response({"object": "response.input_tokens", "input_tokens": len(ids)})

    async def detokenize(self, request: web.Request) -> web.Response:
        """Text of token ids, special tokens included: under `prompt` (vLLM) and `content` (llama-server)."""
        asked = read(DetokenizeBody, await read_json(request, self._config))
        check_model(asked.model, self._backend)
        ids = asked.tokens
        check_ids(ids, self._backend.manifest.vocab_size, "tokens")
        text = await self._spelt(ids)
        return web.json_response({"prompt": text, "content": text})

    async def apply_template(self, request: web.Request) -> web.Response:
        """The prompt that a body of /chat/completions makes, as text (llama-server)."""
        chat = parse_chat_untrusted(prefilled(await read_json(request, self._config)), self._config)
        request[IGNORED] = chat.wanted.ignored
        check_model(chat.wanted.model, self._backend)
        ids = await self._chat_ids(
            instructed(chat.messages, request.get(ALIAS_PROMPT, "")),
            TemplateOptions(chat.tools, chat.options, chat.turn),
        )
        return web.json_response({"prompt": await self._spelt(ids)})

    async def tokenizer_info(self, request: web.Request) -> web.Response:
        """What evaluation harnesses ask of a tokenizer that they do not have themselves (vLLM)."""
        tokenizer = self._backend.tokenizer
        told = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        template = getattr(tokenizer, "chat_template", None)
        length = {"model_max_length": self._backend.manifest.context}
        return web.json_response({**told, **length, "chat_template": template})

    async def props(self, request: web.Request) -> web.Response:
        """What llama-server's clients ask of a server before they use it."""
        manifest, tokenizer = self._backend.manifest, self._backend.tokenizer
        template = getattr(tokenizer, "chat_template", None) or ""
        return web.json_response(
            {
                "default_generation_settings": {"n_ctx": manifest.context, "params": self._defaults()},
                "total_slots": dict(self._config.max_running_of).get(manifest.model, self._config.max_running),
                "model_alias": manifest.model,
                "model_path": manifest.model,
                "chat_template": template if isinstance(template, str) else json.dumps(template),
                "bos_token": tokenizer.bos_token or "",
                "eos_token": tokenizer.eos_token or "",
                "modalities": {"vision": False, "audio": False},
                "build_info": f"wanswarm {__version__}",
            }
        )

    def _defaults(self) -> dict[str, Any]:
        """How an answer is drawn where a request says nothing."""
        seed = self._config.default_seed
        return {**self._config.model_sampling, **({} if seed is None else {"seed": seed})}

    def _piece(self, token: int) -> str | list[int]:
        """What a token adds to a text; bytes where they are no text by themselves."""
        if self._spelling is None:
            self._spelling = Spelling(self._backend.tokenizer)
        data = self._spelling.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return list(data)

    async def _spelt(self, ids: Sequence[int]) -> str:
        decode = partial(self._backend.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(await asyncio.to_thread(decode, ids))

    def _text(self, text: str, special: bool) -> list[int]:
        if special:
            return [int(token) for token in self._backend.encode(text)]
        return [int(token) for token in self._backend.tokenizer.encode(text, add_special_tokens=False)]

    async def _chat(self, asked: TokenizeChatBody, prompt: str) -> list[int]:
        messages, tools = instructed(read_messages(asked.messages), prompt), read_tools(asked)
        options, turn = read_template_options(asked, self._config.template_options), read_turn(asked, messages)
        return await self._chat_ids(messages, TemplateOptions(tools, options, turn))

    async def _chat_ids(self, messages: Sequence[Message], options: TemplateOptions) -> list[int]:
        if not getattr(self._backend.tokenizer, "chat_template", None):
            raise bad_field("messages", "this model has no chat template; send 'prompt'", "unsupported_parameter")
        try:
            found = await asyncio.to_thread(chat_ids, self._backend, messages, options)
        except UsageError as exc:
            raise bad_field("messages", str(exc)) from exc
        return [int(token) for token in found]


def _wants_special(asked: TokenizeTextBody) -> bool:
    """Whether the tokens that begin a prompt are added: by default those of `prompt` (vLLM), not of `content`
    (llama-server)."""
    named = asked.add_special if asked.add_special_tokens is None else asked.add_special_tokens
    return asked.prompt is not None if named is None else named
