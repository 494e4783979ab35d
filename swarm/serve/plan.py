"""From a checked request to runs: the model's own limits (name, context, template) are applied here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace

from jinja2.exceptions import TemplateError

from swarm.base.errors import UsageError
from swarm.model.sampler import Sampling
from swarm.model.shaping import MAX_GIVEN, Shaping
from swarm.model.text.template import TemplateOptions
from swarm.run.api import RunRequest
from swarm.run.prefix_cache import common
from swarm.serve.backend import Backend
from swarm.serve.chat_prompt import chat_ids
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.infill import InfillMarks
from swarm.serve.parse import ChatRequest, GenerationRequest, TextRequest
from swarm.serve.structured import check_structure


async def plan_chat(request: ChatRequest, backend: Backend, config: GatewayConfig, of: str) -> list[RunRequest]:
    """One run per choice, for the user `of`. Raises ApiError 400 or 404."""
    check_model(request.wanted.model, backend)
    template = getattr(backend.tokenizer, "chat_template", None)
    if not template:
        raise bad_field("messages", "this model has no chat template; use /v1/completions", "unsupported_parameter")
    options = TemplateOptions(request.tools, request.options, request.turn)
    try:
        # Tokenizing megabytes takes seconds; other users' tokens must not wait for it.
        prompt = await asyncio.to_thread(chat_ids, backend, request.messages, options)
    except UsageError as exc:
        raise bad_field("messages", str(exc)) from exc
    except (TemplateError, TypeError, ValueError, KeyError) as exc:
        raise bad_field("messages", f"the chat template of this model refuses these messages: {exc}") from exc
    await check_structure(request.wanted.structure, backend, config.shares(of))
    return _runs(request.wanted, tuple(prompt), "messages", backend, config, config.default_max_tokens)


def public_tokens(backend: Backend, config: GatewayConfig, prompt: str, ids: Sequence[int]) -> int:
    """How many tokens a chat begins with that anybody's has who asks for the same alias: of its `prompt` and of the
    template, and none of what a user says or of his tools."""
    anybody = [{"role": "system", "content": prompt}, {"role": "user", "content": "."}]
    options = TemplateOptions((), config.template_options)
    return common(ids, chat_ids(backend, anybody, options))


async def plan_text(request: TextRequest, backend: Backend, config: GatewayConfig, of: str) -> list[RunRequest]:
    """One run per prompt and choice, choices of one prompt together, for the user `of`. Raises ApiError 400 or 404."""
    check_model(request.wanted.model, backend)
    await check_structure(request.wanted.structure, backend, config.shares(of))
    request = request if request.suffix is None else filled_in(request, request.suffix, backend)
    runs: list[RunRequest] = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            ids: Sequence[int] = await asyncio.to_thread(backend.encode, prompt)
        else:
            ids = prompt
            check_ids(ids, backend.manifest.vocab_size, "prompt")
        scored = request.echo and request.wanted.logprobs is not None
        runs += _runs(request.wanted, tuple(ids), "prompt", backend, config, 256, scored)
    return runs


def filled_in(request: TextRequest, suffix: str, backend: Backend, param: str = "suffix") -> TextRequest:
    """The request as one to continue a text. Raises ApiError 400 where the model was not trained for that."""
    marks = InfillMarks.of(backend.tokenizer)
    if marks is None:
        why = "this model continues texts and fills in none: its vocabulary has no marks for it"
        raise bad_field(param, f"'{param}' is not supported: {why}", "unsupported_parameter")
    prompts = tuple(marks.prompt(str(prompt), suffix, request.files) for prompt in request.prompts)
    wanted = replace(request.wanted, stop_token_ids=(*request.wanted.stop_token_ids, *marks.ends))
    return replace(request, wanted=wanted, prompts=prompts, suffix=None)


def check_model(name: str | None, backend: Backend) -> None:
    """A gateway serves one model; a request may leave its name out."""
    if name is not None and name != backend.manifest.model:
        raise ApiError(
            404,
            f"the model {name[:200]!r} is not served here; this gateway serves {backend.manifest.model!r}",
            "model_not_found",
            "model",
        )


def check_ids(ids: Sequence[int], vocab: int, param: str) -> None:
    """Raises ApiError 400 for an id that the model does not have."""
    for index, token in enumerate(ids):
        if not 0 <= token < vocab:
            raise bad_field(param, f"expected token ids from 0 to {vocab - 1}, found {token} at place {index}")


def _runs(
    wanted: GenerationRequest,
    prompt: tuple[int, ...],
    param: str,
    backend: Backend,
    config: GatewayConfig,
    default: int,
    scored: bool = False,
) -> list[RunRequest]:
    """The runs of one prompt. `scored`: the prompt's own tokens come as given ones, with how likely each was."""
    context = backend.manifest.context
    if wanted.truncate is not None:
        prompt = prompt[-wanted.truncate :]
    if wanted.shaping is not None:
        check_ids([token for token, _ in wanted.shaping.bias], backend.manifest.vocab_size, "logit_bias")
    if not prompt:
        raise bad_field(param, f"expected '{param}' to be at least one token long, found an empty one")
    room = context - len(prompt)
    limit = wanted.max_tokens if wanted.max_tokens is not None else min(default, max(room, 1))
    if wanted.fit and room > 0:
        limit = min(limit, room)
    if limit > room:
        raise ApiError(
            400,
            f"this model's context is {context} tokens, but {len(prompt) + limit} were asked for: {len(prompt)} in the "
            f"{param}, {limit} for the answer. Shorten the {param} or lower max_tokens",
            "context_length_exceeded",
            param,
            facts={"n_prompt_tokens": len(prompt), "n_ctx": context},
        )
    seed = wanted.seed if wanted.seed is not None else config.default_seed
    seed = secrets.randbits(62) if seed is None else seed
    given = prompt[1:] if scored else ()
    if len(given) > MAX_GIVEN:
        raise bad_field(param, f"expected at most {MAX_GIVEN + 1} tokens to score in '{param}', found {len(prompt)}")
    if scored:  # what is given needs no drafts
        wanted = replace(wanted, speculation="plain", shaping=Shaping(given=given))
    return [
        RunRequest(
            prompt_ids=prompt[: len(prompt) - len(given)],
            max_tokens=max(
                1, len(given) + limit
            ),  # a ring draws a token at least; where none is wanted it is not shown
            sampling=_sampling(wanted, (seed + index) % 2**63),
            stop=wanted.stop,
            stop_token_ids=wanted.stop_token_ids,
            keep_stop=wanted.keep_stop,
            ignore_eos=wanted.ignore_eos,
            speculation=wanted.speculation,
            draft="none" if wanted.speculation == "plain" else wanted.draft,
            wire=config.wire,
            patience_s=config.patience_s,
            private=config.private,
            receipt=wanted.receipt,
            private_text=wanted.private_text,
            witnesses=config.witnesses,
        )
        for index in range(wanted.n)
    ]


def _sampling(wanted: GenerationRequest, seed: int) -> Sampling:
    return Sampling(
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        repetition_penalty=wanted.repetition_penalty,
        seed=seed,
        # One alternative is the least that makes the ring send log-probabilities at all.
        logprobs=0 if wanted.logprobs is None else max(1, wanted.logprobs),
        constraint=wanted.structure.constraint if wanted.structure is not None else None,
        shaping=wanted.shaping,
    )
