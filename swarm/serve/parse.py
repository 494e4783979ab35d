"""Request bodies to plain data: no socket, no model. Raises ApiError alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from swarm.model.shaping import Shaping
from swarm.model.text.template import NEW_ANSWER, Turn
from swarm.run.api import DRAFTS, SPECULATIONS, Draft, Speculation
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.fields import Fields, clean_text, describe
from swarm.serve.messages import read_messages, read_template_options, read_tools
from swarm.serve.shaping import SHAPING, read_shaping
from swarm.serve.structured import STRUCTURED, Structure, read_structure

MAX_STOPS = 16
MAX_STOP_CHARS = 512
MAX_STOP_TOKENS = 256
MAX_TOP_LOGPROBS = 20
_SEED = 2**63

_IGNORED = frozenset(
    "user metadata store service_tier parallel_tool_calls prompt_cache_key prompt_cache_retention safety_identifier "
    "verbosity".split()
)
_OWN = frozenset(
    "top_k min_p repetition_penalty speculation draft receipt private_text ignore_eos stop_token_ids "
    "include_stop_str_in_output truncate_prompt_tokens skip_special_tokens spaces_between_special_tokens".split()
)
_COMMON = frozenset(
    "model max_tokens temperature top_p seed stop n stream stream_options logprobs logit_bias presence_penalty "
    "frequency_penalty min_tokens".split()
)
_CHAT = (
    _COMMON
    | _OWN
    | _IGNORED
    | STRUCTURED
    | frozenset(
        "messages max_completion_tokens top_logprobs tools tool_choice functions function_call audio "
        "modalities prediction web_search_options reasoning_effort chat_template_kwargs add_generation_prompt "
        "continue_final_message".split()
    )
)
_TEXT = _COMMON | _OWN | _IGNORED | STRUCTURED | frozenset("prompt echo best_of suffix".split())
_GENERATE = frozenset("prompt model max_tokens temperature top_p seed stop".split()) | _OWN


@dataclass(frozen=True)
class GenerationRequest:
    """What chat and text requests share; `structure` is what the answer is held to.

    `logprobs`: None for none, else how many alternatives per token; `truncate`: how many of a prompt's last tokens are
    kept; `fit`: more tokens than the context holds are a wish; `ignored`: fields that nobody reads; `usage_so_far`:
    every chunk tells the tokens until then.
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
    """Prompts to continue: text, or token ids. `plain`: answer in the short shape of /generate."""

    wanted: GenerationRequest
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    plain: bool = False


def parse_chat_untrusted(body: Any, config: GatewayConfig) -> ChatRequest:
    """Body of POST /v1/chat/completions."""
    fields = Fields(body)
    ignored = fields.beyond(_CHAT, config.strict)
    _refuse_unsupported(fields)
    messages = read_messages(fields)
    tools = read_tools(fields)
    limit, other = (fields.integer(name, 0, 2**31 - 1) for name in ("max_completion_tokens", "max_tokens"))
    limit = other if limit is None else limit
    logprobs = None
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.flag("logprobs"):
        logprobs = top or 0
    elif top:
        raise bad_field("top_logprobs", "'top_logprobs' needs 'logprobs': true")
    wanted = _wanted(fields, config, limit, logprobs)
    wanted = replace(wanted, ignored=ignored, structure=read_structure(fields, tools))
    return ChatRequest(wanted, messages, tools, read_template_options(fields), read_turn(fields, messages))


def read_turn(fields: Fields, messages: Sequence[Mapping[str, Any]]) -> Turn:
    """How the prompt ends, as vLLM's API spells it."""
    going_on = fields.flag("continue_final_message")
    begin = fields.flag("add_generation_prompt", not going_on)
    if going_on and begin:
        raise bad_field(
            "continue_final_message", "'continue_final_message' needs 'add_generation_prompt': false, or none at all"
        )
    if going_on and not messages[-1]["content"]:
        raise bad_field("continue_final_message", "'continue_final_message' needs a last message with content")
    return Turn(begin, going_on)


def parse_completion_untrusted(body: Any, config: GatewayConfig) -> TextRequest:
    """Body of POST /v1/completions."""
    fields = Fields(body)
    ignored = fields.beyond(_TEXT, config.strict)
    _refuse_unsupported(fields)
    if fields.text("suffix"):
        raise _unsupported("suffix", "text is continued, not filled in")
    limit = fields.integer("max_tokens", 0, 2**31 - 1)
    wanted = _wanted(fields, config, 16 if limit is None else limit, fields.integer("logprobs", 0, MAX_TOP_LOGPROBS))
    wanted = replace(wanted, ignored=ignored, structure=read_structure(fields))
    best_of = fields.integer("best_of", 1, config.max_choices)
    if best_of is not None and best_of != wanted.n:
        raise _unsupported(
            "best_of", f"every answer that is made is returned; leave it out or set it to n = {wanted.n}"
        )
    prompts = _prompts(fields)
    if len(prompts) * wanted.n > config.max_choices:
        raise bad_field(
            "prompt",
            f"expected at most {config.max_choices} answers per request, found {len(prompts)} prompts, n = {wanted.n}",
        )
    echo = fields.flag("echo")
    if echo and wanted.logprobs is not None:
        wanted = _scoring(fields, wanted)
    return TextRequest(wanted, prompts, echo)


def _scoring(fields: Fields, wanted: GenerationRequest) -> GenerationRequest:
    """Of a prompt that is told with its log-probabilities: they are the model's own, so nothing may change them."""
    changed = [wanted.structure.param] if wanted.structure is not None else []
    changed += [name for name in SHAPING if fields.get(name) not in (None, 0, {}, [])]
    changed += ["repetition_penalty"] if fields.get("repetition_penalty") not in (None, 1) else []
    if changed:
        raise _unsupported(changed[0], "with 'echo' and 'logprobs' probabilities are the model's own; leave it out")
    return replace(wanted, repetition_penalty=1.0, shaping=None)


def parse_generate_untrusted(body: Any, config: GatewayConfig) -> TextRequest:
    """Body of POST /generate: {"prompt": ...} and a few options; greedy unless a temperature is given."""
    fields = Fields(body)
    ignored = fields.beyond(_GENERATE, config.strict)
    limit = 256 if (asked := fields.integer("max_tokens", 0, 2**31 - 1)) is None else asked
    wanted = _wanted(fields, config, limit, None, default_temperature=0.0)
    wanted = replace(wanted, ignored=ignored)
    return TextRequest(wanted, (fields.need_text("prompt"),), plain=True)


def _wanted(
    fields: Fields,
    config: GatewayConfig,
    limit: int | None,
    logprobs: int | None,
    default_temperature: float | None = None,
) -> GenerationRequest:
    own = config.model_sampling if default_temperature is None else {}
    if default_temperature is None:
        default_temperature = config.default_temperature
    if default_temperature is None:
        default_temperature = own.get("temperature", 1.0)
    top_k = fields.integer("top_k", -1, 2**31 - 1)
    stream = fields.flag("stream")
    include_usage, usage_so_far = _usage_options(fields, stream)
    fields.flag("spaces_between_special_tokens")  # there never are any
    return GenerationRequest(
        model=fields.text("model"),
        max_tokens=limit,
        temperature=fields.number("temperature", default_temperature, 0.0, 2.0),
        top_p=fields.number("top_p", own.get("top_p", 1.0), 0.0, 1.0, above=True),
        top_k=max(0, int(own.get("top_k", 0)) if top_k is None else top_k),
        min_p=fields.number("min_p", own.get("min_p", 0.0), 0.0, 1.0),
        repetition_penalty=fields.number(
            "repetition_penalty", own.get("repetition_penalty", 1.0), 0.0, 10.0, above=True
        ),
        shaping=read_shaping(fields, limit),
        seed=fields.integer("seed", -_SEED, _SEED - 1),
        stop=_stops(fields),
        stop_token_ids=_stop_token_ids(fields),
        keep_stop=fields.flag("include_stop_str_in_output"),
        truncate=fields.integer("truncate_prompt_tokens", 1, 2**31 - 1),
        n=fields.integer("n", 1, config.max_choices) or 1,
        stream=stream,
        include_usage=include_usage,
        usage_so_far=usage_so_far,
        show_special=not fields.flag("skip_special_tokens", True),
        logprobs=logprobs,
        ignore_eos=fields.flag("ignore_eos"),
        receipt=fields.flag("receipt", True),
        private_text=fields.flag("private_text"),
        speculation=cast(Speculation, fields.choice("speculation", SPECULATIONS, config.speculation)),
        draft=cast(Draft, fields.choice("draft", DRAFTS, config.draft)),
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise fields.wrong("stop", "a string or an array of strings")
    if len(value) > MAX_STOPS:
        raise bad_field("stop", f"expected at most {MAX_STOPS} stop strings, found {len(value)}")
    for index, item in enumerate(value):
        path = f"stop[{index}]"
        if not isinstance(item, str):
            raise bad_field(path, f"expected '{path}' to be a string, found {describe(item)}", "invalid_type")
        clean_text(item, path)
        if not 1 <= len(item) <= MAX_STOP_CHARS:
            raise bad_field(path, f"expected '{path}' to have 1 to {MAX_STOP_CHARS} characters, found {len(item)}")
    return tuple(value)


def _stop_token_ids(fields: Fields) -> tuple[int, ...]:
    value = fields.array("stop_token_ids", MAX_STOP_TOKENS) or []
    if not is_ids(value):
        raise fields.wrong("stop_token_ids", "an array of token ids")
    return tuple(value)


def _usage_options(fields: Fields, stream: bool) -> tuple[bool, bool]:
    """Whether a last chunk tells the tokens, and whether every chunk does."""
    value = fields.get("stream_options")
    if value is None:
        return False, False
    options = Fields(value, "stream_options")
    options.only(frozenset({"include_usage", "include_obfuscation", "continuous_usage_stats"}))
    options.flag("include_obfuscation")
    include, so_far = options.flag("include_usage"), options.flag("continuous_usage_stats")
    if not stream:
        raise bad_field("stream_options", "'stream_options' needs 'stream': true")
    return include, so_far and include


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    if isinstance(value, str):
        return (clean_text(value, "prompt"),)
    if not isinstance(value, list):
        raise fields.wrong("prompt", "a string, an array of strings, or an array of token ids")
    if not value:
        raise bad_field("prompt", "expected a prompt, found an empty array")
    if is_ids(value):
        return (tuple(value),)
    prompts: list[str | tuple[int, ...]] = []
    for index, item in enumerate(value):
        path = f"prompt[{index}]"
        if isinstance(item, str):
            prompts.append(clean_text(item, path))
        elif isinstance(item, list) and item and is_ids(item):
            prompts.append(tuple(item))
        else:
            raise bad_field(
                path,
                f"expected '{path}' to be a string or an array of token ids, found {describe(item)}",
                "invalid_type",
            )
    return tuple(prompts)


def is_ids(items: list[Any]) -> bool:
    """Whether all are whole numbers."""
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)


def _unsupported(name: str, why: str) -> ApiError:
    return bad_field(name, f"'{name}' is not supported: {why}", "unsupported_parameter")


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse what would silently change the answer; what has no effect at its default passes."""
    reasons = {
        "functions": "use 'tools'",
        "function_call": "use 'tool_choice'",
        "audio": "the model writes text only",
        "web_search_options": "the model has no tools of its own",
    }
    for name, why in reasons.items():
        if fields.get(name) not in (None, {}, []):
            raise _unsupported(name, why)
    if fields.get("modalities") not in (None, [], ["text"]):
        raise _unsupported("modalities", "the model writes text only")
