"""Request bodies to plain data: no socket, no model. Raises ApiError alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.model.shaping import Shaping
from swarm.model.text.template import NEW_ANSWER, Turn
from swarm.run.api import Draft, Speculation
from swarm.serve.body import beyond, outside, read, wrong
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.infill import File
from swarm.serve.messages import read_messages, read_template_options, read_tools
from swarm.serve.requests import ChatBody, Common, CompletionBody, Conversation, GenerateBody, Sampled
from swarm.serve.shaping import SHAPING, read_shaping
from swarm.serve.structured import Structure, read_structure
from swarm.serve.thoughts import ThoughtWish, read_thought


@dataclass(frozen=True)
class GenerationRequest:
    """What chat and text requests share; `structure` is what the answer is held to.

    `logprobs`: None for none, else how many alternatives per token; `truncate`: how many of a prompt's last tokens are
    kept; `fit`: more tokens than the context holds are a wish; `ignored`: fields that nobody reads; `usage_so_far`:
    every chunk tells the tokens until then; `verbose`: the answer tells the prompt as text; `pace` and `progress`: a
    stream tells how fast it is, and how much of the prompt is read; `thought`: how long it may think.
    """

    model: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    shaping: Shaping | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False
    truncate: int | None = None
    fit: bool = False
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    usage_so_far: bool = False
    show_special: bool = False
    logprobs: int | None = None
    ignore_eos: bool = False
    receipt: bool = True
    private_text: bool = False
    speculation: Speculation = "stream"
    draft: Draft = "auto"
    ignored: tuple[str, ...] = ()
    structure: Structure | None = None
    verbose: bool = False
    pace: bool = False
    progress: bool = False
    thought: ThoughtWish | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A chat. Messages and tools hold only the keys that chat templates know; `options`: further variables of it."""

    wanted: GenerationRequest
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    turn: Turn = NEW_ANSWER


@dataclass(frozen=True)
class TextRequest:
    """Prompts to continue: text, or token ids. `plain`: answer in the short shape of /generate; `suffix`: what comes
    behind the missing part, where a text is to be filled in, and `files` those that it belongs with."""

    wanted: GenerationRequest
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    plain: bool = False
    suffix: str | None = None
    files: tuple[File, ...] = ()


def parse_chat_untrusted(body: Any, config: GatewayConfig) -> ChatRequest:
    """Body of POST /v1/chat/completions."""
    asked = read(ChatBody, stops_listed(body))
    ignored = beyond(ChatBody, body, config.strict)
    _refuse_unsupported(asked)
    messages, tools = read_messages(asked.messages), read_tools(asked)
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if asked.top_logprobs and not asked.logprobs:
        raise bad_field("top_logprobs", "'top_logprobs' needs 'logprobs': true")
    wanted = _of_openai(asked, config, limit, (asked.top_logprobs or 0) if asked.logprobs else None)
    wanted = replace(wanted, ignored=ignored, structure=read_structure(asked, asked.tool_choice, tools))
    wanted = replace(wanted, verbose=config.verbose if asked.verbose is None else asked.verbose)
    options = read_template_options(asked, config.template_options)
    wanted = replace(wanted, thought=read_thought(asked, options))
    return ChatRequest(wanted, messages, tools, options, read_turn(asked, messages))


def read_turn(asked: Conversation, messages: Sequence[Mapping[str, Any]]) -> Turn:
    """How the prompt ends, as vLLM's API spells it."""
    going_on = asked.continue_final_message or False
    begin = not going_on if asked.add_generation_prompt is None else asked.add_generation_prompt
    if going_on and begin:
        raise bad_field(
            "continue_final_message", "'continue_final_message' needs 'add_generation_prompt': false, or none at all"
        )
    if going_on and not messages[-1]["content"]:
        raise bad_field("continue_final_message", "'continue_final_message' needs a last message with content")
    return Turn(begin, going_on)


def parse_completion_untrusted(body: Any, config: GatewayConfig) -> TextRequest:
    """Body of POST /v1/completions."""
    asked = read(CompletionBody, stops_listed(body))
    ignored = beyond(CompletionBody, body, config.strict)
    _refuse_unsupported(asked)
    wanted = _of_openai(asked, config, 16 if asked.max_tokens is None else asked.max_tokens, asked.logprobs)
    wanted = replace(wanted, ignored=ignored, structure=read_structure(asked))
    if asked.best_of not in (None, wanted.n):
        raise _unsupported(
            "best_of", f"every answer that is made is returned; leave it out or set it to n = {wanted.n}"
        )
    prompts = _prompts(asked.prompt)
    if len(prompts) * wanted.n > config.max_choices:
        raise bad_field(
            "prompt",
            f"expected at most {config.max_choices} answers per request, found {len(prompts)} prompts, n = {wanted.n}",
        )
    if asked.suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise _unsupported("suffix", "between texts alone something can be filled in, not between token ids")
    if asked.echo and wanted.logprobs is not None:
        if asked.suffix:
            raise _unsupported("suffix", "what is filled in cannot be scored")
        wanted = _scoring(asked, wanted)
    return TextRequest(wanted, prompts, asked.echo or False, suffix=asked.suffix or None)


def _scoring(asked: Sampled, wanted: GenerationRequest) -> GenerationRequest:
    """Of a prompt that is told with its log-probabilities: they are the model's own, so nothing may change them."""
    changed = [wanted.structure.param] if wanted.structure is not None else []
    changed += [name for name in SHAPING if getattr(asked, name) not in (None, 0, {}, [])]
    changed += ["repetition_penalty"] if asked.repetition_penalty not in (None, 1) else []
    if changed:
        raise _unsupported(changed[0], "with 'echo' and 'logprobs' probabilities are the model's own; leave it out")
    return replace(wanted, repetition_penalty=1.0, shaping=None)


def parse_generate_untrusted(body: Any, config: GatewayConfig) -> TextRequest:
    """Body of POST /generate: {"prompt": ...} and a few options; greedy unless a temperature is given."""
    asked = read(GenerateBody, stops_listed(body))
    ignored = beyond(GenerateBody, body, config.strict)
    plain = replace(config, model_sampling={}, default_temperature=0.0)
    wanted = _wanted(asked, plain, 256 if asked.max_tokens is None else asked.max_tokens)
    return TextRequest(replace(wanted, ignored=ignored), (asked.prompt,), plain=True)


def _of_openai(asked: Common, config: GatewayConfig, limit: int | None, logprobs: int | None) -> GenerationRequest:
    if asked.n is not None and asked.n > config.max_choices:
        raise outside("n", f"between 1 and {config.max_choices}", asked.n)
    told = asked.stream_options
    if told is not None and not asked.stream:
        raise bad_field("stream_options", "'stream_options' needs 'stream': true")
    usage = told is not None and bool(told.include_usage)
    return replace(
        _wanted(asked, config, limit),
        n=asked.n or 1,
        stream=asked.stream or False,
        include_usage=usage,
        usage_so_far=usage and told is not None and bool(told.continuous_usage_stats),
        logprobs=logprobs,
        pace=asked.timings_per_token or False,
        progress=asked.return_progress or False,
    )


def prefilled(body: Any) -> Any:
    """As llama-server, Anthropic and Ollama have it: where the last message is the assistant's, the answer goes on
    within it, unless the body says how its prompt ends."""
    messages = body.get("messages") if isinstance(body, dict) else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant" or last.get("tool_calls"):
        return body
    if not last.get("content") or "continue_final_message" in body or "add_generation_prompt" in body:
        return body
    return {**body, "continue_final_message": True}


def _wanted(asked: Sampled, config: GatewayConfig, limit: int | None) -> GenerationRequest:
    own = config.model_sampling
    hot = own.get("temperature", 1.0) if config.default_temperature is None else config.default_temperature
    return GenerationRequest(
        model=asked.model,
        max_tokens=limit,
        temperature=_or(asked.temperature, hot),
        top_p=_or(asked.top_p, own.get("top_p", 1.0)),
        top_k=max(0, int(_or(asked.top_k, own.get("top_k", 0)))),
        min_p=_or(asked.min_p, own.get("min_p", 0.0)),
        repetition_penalty=_or(asked.repetition_penalty, own.get("repetition_penalty", 1.0)),
        shaping=read_shaping(asked, limit),
        seed=asked.seed,
        stop=tuple([asked.stop] if isinstance(asked.stop, str) else asked.stop or ()),
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        keep_stop=asked.include_stop_str_in_output or False,
        truncate=asked.truncate_prompt_tokens,
        show_special=asked.skip_special_tokens is False,
        ignore_eos=asked.ignore_eos or False,
        receipt=asked.receipt is not False,
        private_text=asked.private_text or False,
        speculation=asked.speculation or config.speculation,
        draft=asked.draft or config.draft,
    )


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def stops_listed(body: Any) -> Any:
    """One stop string is a list of one, also in what is said of it."""
    if isinstance(body, dict) and isinstance(body.get("stop"), str):
        return {**body, "stop": [body["stop"]]}
    return body


def _prompts(value: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return (value,)
    ids = tuple(item for item in value if isinstance(item, int))
    if len(ids) == len(value):
        return (ids,)
    prompts: list[str | tuple[int, ...]] = []
    for index, item in enumerate(value):
        if isinstance(item, int) or not isinstance(item, str) and not item:
            raise wrong(f"prompt[{index}]", "a string or an array of token ids", item)
        prompts.append(item if isinstance(item, str) else tuple(item))
    return tuple(prompts)


def _unsupported(name: str, why: str) -> ApiError:
    return bad_field(name, f"'{name}' is not supported: {why}", "unsupported_parameter")


def _refuse_unsupported(asked: Common) -> None:
    """Refuse what would silently change the answer; what has no effect at its default passes."""
    reasons = {
        "functions": "use 'tools'",
        "function_call": "use 'tool_choice'",
        "audio": "the model writes text only",
        "web_search_options": "the model has no tools of its own",
    }
    for name, why in reasons.items():
        if getattr(asked, name) not in (None, {}, []):
            raise _unsupported(name, why)
    if asked.modalities not in (None, [], ["text"]):
        raise _unsupported("modalities", "the model writes text only")
