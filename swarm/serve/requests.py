"""Every request that can be posted, as a type: what is in a body, within which bounds, and what it is for.

Bodies are read by these types (`swarm.serve.body.read`), and `/openapi.json` is made from them, so the two cannot tell
different stories. What a type cannot say (fields that exclude each other, a model's own limits) is checked by whoever
reads the field. null is as good as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from swarm.model.text.template import RESERVED
from swarm.run.api import Draft, Speculation

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 128
MAX_OPTIONS = 64
MAX_IMAGES = 64
MAX_STOPS = 64
MAX_STOP_CHARS = 512
MAX_STOP_TOKENS = 256
MAX_TOP_LOGPROBS = 20

Limit = Annotated[int, Meta(ge=0, le=2**31 - 1, description="0: no token, only the prompt")]
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy")]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1, description="0 and -1 keep all")]
MinP = Annotated[float, Meta(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Meta(max_length=MAX_STOPS)]
Effort = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="told to the chat template, or a limit of thoughts where it does not read it; none: no thinking",
    ),
]
Budget = Annotated[
    int,
    Meta(ge=-1, le=2**31 - 1, description="tokens of thought, after which the closing mark is forced; -1: any number"),
]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
"""Of a tool. Anthropic's bound; those of programs that name tools after their servers are longer than OpenAI's 64."""
Model = Annotated[str, Meta(description="as in /v1/models; may be left out")]
Schema = Annotated[
    Any,
    Meta(extra_json_schema={"type": ["object", "boolean", "string", "null"]}, description="a JSON Schema, or its text"),
]
Pattern = Annotated[str, Meta(description="a regular expression in Rust's syntax")]
Grammar = Annotated[str, Meta(description="a grammar in GBNF or Lark")]
JsonObject = Annotated[dict[str, Any], Meta(description="a JSON Schema")]
NotUsed = Annotated[Any, Meta(description="taken and not used")]
Unsupported = Annotated[Any, Meta(description="not supported", extra_json_schema={"deprecated": True})]
Options = Annotated[
    dict[str, Any],
    Meta(
        description="variables of the chat template, such as enable_thinking",
        extra_json_schema={
            "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]*$", "not": {"enum": sorted(RESERVED)}},
            "maxProperties": MAX_OPTIONS,
        },
    ),
]
LogitBias = Annotated[
    Any,
    Meta(
        description="from token ids to what is added to their logits, -100 to 100; or an array of such pairs",
        extra_json_schema={
            "type": ["object", "array", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "items": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": ["number", "boolean"]}]},
            "maxProperties": 8,
            "maxItems": 8,
        },
    ),
]


class Sampled(Struct, kw_only=True):
    """How an answer is drawn, and when it ends: options of every address that makes one."""

    model: Model | None = None
    max_tokens: Limit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias = None
    min_tokens: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="at most max_tokens: the answer ends no sooner")
    ] | None = None  # fmt: skip
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    stop_token_ids: Annotated[
        list[int], Meta(max_length=MAX_STOP_TOKENS, description="end the answer, also with ignore_eos")
    ] | None = None  # fmt: skip
    include_stop_str_in_output: Annotated[bool, Meta(description="show the stop string or token")] | None = None
    truncate_prompt_tokens: Annotated[
        int, Meta(ge=1, le=2**31 - 1, description="keep so many of the prompt's last tokens")
    ] | None = None  # fmt: skip
    skip_special_tokens: Annotated[
        bool, Meta(description="false shows them, but for one that ends the answer")
    ] | None = None  # fmt: skip
    spaces_between_special_tokens: Annotated[bool, Meta(description="taken and not used")] | None = None
    ignore_eos: Annotated[bool, Meta(description="go on past end tokens")] | None = None
    speculation: Speculation | None = None
    draft: Draft | None = None
    receipt: Annotated[bool, Meta(description="make a signed receipt of the run; true by default")] | None = None
    private_text: Annotated[
        bool, Meta(description="salted digests of the tokens in the receipt, not the tokens")
    ] | None = None  # fmt: skip


class GenerateBody(Sampled, kw_only=True):
    """POST /generate"""

    prompt: str


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream tells besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class NamedSchema(Struct, kw_only=True):
    """As OpenAI has it; held to whether `strict` or not."""

    name: str | None = None
    strict: bool | None = None
    schema: Schema = None


class ResponseFormat(Struct, kw_only=True):
    """The form of an answer."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "json_object", "json_schema", "grammar"]})]
    json_schema: NamedSchema | None = None
    schema: Schema = None
    grammar: Grammar | None = None


class Structured(Sampled, kw_only=True):
    """What answers can be held to: one of these at most."""

    response_format: ResponseFormat | None = None
    structured_outputs: Annotated[
        dict[str, Any], Meta(description="as vLLM has it: json, regex, grammar, choice or json_object")
    ] | None = None  # fmt: skip
    json_schema: Schema = None
    guided_json: Schema = None
    regex: Pattern | None = None
    guided_regex: Pattern | None = None
    grammar: Grammar | None = None
    ebnf: Grammar | None = None
    guided_grammar: Grammar | None = None
    guided_choice: Annotated[Any, Meta(extra_json_schema={"type": ["array", "null"], "items": {"type": "string"}})] = (
        None
    )
    guided_decoding_backend: Annotated[str, Meta(description="taken and not used")] | None = None
    guided_whitespace_pattern: Annotated[Any, Meta(extra_json_schema={"type": "null"})] = None


class Common(Structured, kw_only=True):
    """What OpenAI's two APIs share, fields without effect included."""

    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions, Meta(description="needs stream")] | None = None
    user: NotUsed = None
    metadata: NotUsed = None
    store: NotUsed = None
    service_tier: NotUsed = None
    parallel_tool_calls: NotUsed = None
    prompt_cache_key: NotUsed = None
    prompt_cache_retention: NotUsed = None
    safety_identifier: NotUsed = None
    verbosity: NotUsed = None
    timings_per_token: Annotated[bool, Meta(description="chunks tell how fast the answer is (llama-server)")] | None = (
        None
    )
    return_progress: Annotated[
        bool, Meta(description="chunks tell how much of the prompt is read (llama-server)")
    ] | None = None  # fmt: skip
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    modalities: Annotated[Any, Meta(extra_json_schema={"anyOf": [{"enum": [None, []]}, {"const": ["text"]}]})] = None


class CompletionBody(Common, kw_only=True):
    """POST /v1/completions"""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Annotated[
        bool, Meta(description="put the prompt before the answer, with its log-probabilities where asked for")
    ] | None = None  # fmt: skip
    best_of: Annotated[int, Meta(ge=1, description="must equal n")] | None = None
    suffix: Annotated[
        str, Meta(description="what comes behind the part that is to be filled in; for models that know how")
    ] | None = None  # fmt: skip


class TextPart(Struct, tag="text", tag_field="type"):
    """Text of a message."""

    text: str


class RefusalPart(Struct, tag="refusal", tag_field="type"):
    """Of an earlier answer."""

    refusal: str


Parts = Annotated[list[TextPart | RefusalPart], Meta(max_length=MAX_PARTS)]


class CallFunction(Struct):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class ToolCallPart(Struct, kw_only=True):
    """A call of an earlier answer."""

    function: CallFunction
    id: str | None = None
    type: Literal["function"] | None = None


class SystemMessage(Struct, tag="system", tag_field="role", kw_only=True):
    content: str | Parts
    name: str | None = None


class DeveloperMessage(SystemMessage, tag="developer", tag_field="role", kw_only=True):
    pass


class UserMessage(SystemMessage, tag="user", tag_field="role", kw_only=True):
    pass


class AssistantMessage(Struct, tag="assistant", tag_field="role", kw_only=True):
    """An earlier answer: content, or calls."""

    content: str | Parts | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallPart], Meta(max_length=MAX_TOOLS)] | None = None
    reasoning_content: str | None = None


class ToolMessage(SystemMessage, tag="tool", tag_field="role", kw_only=True):
    tool_call_id: str


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ToolFunction(Struct, kw_only=True):
    """`parameters` is a JSON Schema."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: ToolFunction


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Annotated[
    Any,
    Meta(
        description="required, or a named function: the answer is held to be a call",
        extra_json_schema={"anyOf": [{"enum": ["none", "auto", "required", None]}, {"type": "object"}]},
    ),
]


class ChosenFunction(Struct):
    name: str


class ChosenTool(Struct):
    type: Literal["function"]
    function: ChosenFunction


class NamedChoice(Struct):
    """A `tool_choice` that is an object."""

    tool_choice: ChosenTool


Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
BeginAnswer = Annotated[bool, Meta(description="begin an answer; true by default")]
GoOn = Annotated[bool, Meta(description="go on within the last message; excludes add_generation_prompt")]


class ChatBody(Common, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Messages
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    reasoning_effort: Effort | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    enable_thinking: Annotated[bool, Meta(description="told to the chat template")] | None = None
    chat_template_kwargs: Options | None = None
    add_generation_prompt: BeginAnswer | None = None
    continue_final_message: GoOn | None = None
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS, description="needs logprobs")] | None = None
    prediction: NotUsed = None
    verbose: Annotated[bool, Meta(description="tell the prompt as text (llama-server)")] | None = None


class TokenizeChatBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize, of a chat"""

    messages: Messages
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Options | None = None
    add_generation_prompt: BeginAnswer | None = None
    continue_final_message: GoOn | None = None
    model: Model | None = None
    return_token_strs: bool | None = None


Conversation = ChatBody | TokenizeChatBody
"""A chat, and how its prompt is made."""


class TokenizeTextBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize, of `prompt` (vLLM) or `content` (llama-server)"""

    model: Model | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: Annotated[bool, Meta(description="tokens as objects of id and piece")] | None = None


class DetokenizeBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize"""

    tokens: list[int]
    model: Model | None = None
