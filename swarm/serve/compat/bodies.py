"""What is posted to the other APIs, as types, like `swarm.serve.requests`. Fields that are not named have no effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from swarm.run.api import Draft, Speculation
from swarm.serve.requests import (
    MAX_IMAGES,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    Effort,
    JsonObject,
    MinP,
    Model,
    Name,
    NotUsed,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Stops,
    Temperature,
    Tools,
    TopK,
    TopP,
    Unsupported,
)

Input = dict[str, Any]


class LlamaPrompt(Struct, kw_only=True):
    """A prompt as an object; what it may hold besides text is refused."""

    prompt_string: str
    multimodal_data: Any = None


class LlamaBody(Struct, kw_only=True):
    """POST /completion, as llama-server has it. Fields that are not named have no effect."""

    prompt: str | LlamaPrompt | Annotated[list[str | int | list[int | str] | LlamaPrompt], Meta(min_length=1)]
    model: Model | None = None
    n_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1, description="below 0: to the end of the context")] | None = None
    max_tokens: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[
        Any,
        Meta(
            description="pairs of a token id, or a text for all of its tokens, and what is added; false bans",
            extra_json_schema={
                "type": ["object", "array", "null"],
                "propertyNames": {"maxLength": 64},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                "items": {
                    "type": "array",
                    "prefixItems": [{"type": ["integer", "string"]}, {"type": ["number", "boolean"]}],
                },
                "maxProperties": 8,
                "maxItems": 8,
            },
        ),
    ] = None
    seed: Annotated[int, Meta(ge=-1, le=2**63 - 1, description="-1: another one each time")] | None = None
    stop: Stop | Stops | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    ignore_eos: bool | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    post_sampling_probs: Annotated[bool, Meta(description="needs temperature 1 and nothing cut off")] | None = None
    return_tokens: bool | None = None
    response_fields: Annotated[list[str], Meta(max_length=64)] | None = None
    json_schema: Any = None
    grammar: str | None = None
    speculation: Speculation | None = None
    draft: Draft | None = None
    receipt: bool | None = None
    private_text: bool | None = None
    cache_prompt: NotUsed = None
    id_slot: NotUsed = None
    n_keep: NotUsed = None
    samplers: NotUsed = None
    n_cache_reuse: NotUsed = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None


class InfillFile(Struct, kw_only=True):
    text: str
    filename: str | None = None


class InfillBody(LlamaBody, kw_only=True):
    """POST /infill, as llama-server has it: what stands between two texts."""

    prompt: Annotated[str, Meta(description="what the missing part begins with")] = ""
    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[InfillFile], Meta(max_length=MAX_PARTS)] | None = None


# Anthropic


class TextBlock(Struct, tag="text", tag_field="type"):
    text: str | None = None


class ImageBlock(Struct, tag="image", tag_field="type"):
    """Refused: the model reads text only."""


class DocumentBlock(Struct, tag="document", tag_field="type"):
    """Refused: the model reads text only."""


class ToolUseBlock(Struct, tag="tool_use", tag_field="type", kw_only=True):
    """A call of an earlier answer."""

    name: str
    id: str | None = None
    input: Input | None = None


TextBlocks = Annotated[list[TextBlock | ImageBlock | DocumentBlock], Meta(max_length=MAX_PARTS)]


class ToolResultBlock(Struct, tag="tool_result", tag_field="type", kw_only=True):
    tool_use_id: str | None = None
    content: str | TextBlocks | None = None


class ThinkingBlock(Struct, tag="thinking", tag_field="type"):
    """Of an earlier answer: told to the chat template, which may leave it out."""

    thinking: str | None = None


class RedactedBlock(Struct, tag="redacted_thinking", tag_field="type"):
    """Left out of the prompt."""


Block = TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedBlock


class AnthropicMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=MAX_PARTS)] | None = None


class AnthropicTool(Struct, kw_only=True):
    """Tools of Anthropic's own servers, and those whose schemas only its models know, are left out."""

    name: Name
    type: Annotated[str, Meta(extra_json_schema={"enum": ["custom"]})] | None = None
    description: str | None = None
    input_schema: JsonObject | None = None


class AnthropicChoice(Struct, kw_only=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["auto", "any", "tool", "none"]})] | None = None
    name: str | None = None


class Thinking(Struct, kw_only=True):
    """`enabled` and `adaptive` tell the chat template to think."""

    type: str | None = None
    budget_tokens: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="tokens of thought; its closing mark is forced then")
    ] | None = None  # fmt: skip


class OutputFormat(Struct, kw_only=True):
    """The form of an answer, in Anthropic's words."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["json_schema"]})]
    schema: Any = None


class OutputConfig(Struct, kw_only=True):
    """How much an answer is thought about, and its form."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class CountBody(Struct, kw_only=True):
    """POST /v1/messages/count_tokens"""

    messages: Annotated[list[AnthropicMessage], Meta(max_length=MAX_MESSAGES)]
    system: str | TextBlocks | None = None
    model: Model | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop_sequences: Stops | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Annotated[OutputFormat, Meta(description="older clients' place for output_config.format")] | None = (
        None
    )
    metadata: NotUsed = None
    cache_control: NotUsed = None
    service_tier: NotUsed = None


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stream: bool | None = None


# Ollama


class OllamaFunction(Struct, kw_only=True):
    name: str
    arguments: Input | None = None


class OllamaCall(Struct):
    function: OllamaFunction


Images = Annotated[list[Any], Meta(max_length=MAX_IMAGES, description="refused: the model reads text only")]


class OllamaMessage(Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    images: Images | None = None
    tool_calls: Annotated[list[OllamaCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    thinking: Annotated[str, Meta(description="of an earlier answer; told to the chat template")] | None = None


class OllamaOptions(Struct, kw_only=True):
    """Sampling. Options that only tune ollama's own engine (num_ctx, num_gpu, mirostat) have no effect."""

    num_predict: Annotated[Any, Meta(description="at most so many tokens; not above 0: no limit")] = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: RepetitionPenalty | None = None


class OllamaCommon(Struct, kw_only=True):
    model: Model | None = None
    name: Annotated[str, Meta(description="older clients' word for model")] | None = None
    options: OllamaOptions | None = None
    format: Annotated[Any, Meta(description="json, or a JSON Schema")] = None
    think: Annotated[Any, Meta(description="true, false, or how much")] = None
    stream: Annotated[bool, Meta(description="true by default")] | None = None
    keep_alive: NotUsed = None


class OllamaChatBody(OllamaCommon, kw_only=True):
    """POST /api/chat; without messages: whether the model is there"""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class OllamaGenerateBody(OllamaCommon, kw_only=True):
    """POST /api/generate; without a prompt: whether the model is there"""

    prompt: str | None = None
    system: str | None = None
    images: Images | None = None
    suffix: Annotated[str, Meta(description="what comes behind the part that is to be filled in")] | None = None
    raw: Annotated[bool, Meta(description="continue the prompt as it stands, without the chat template")] | None = None


class OllamaShowBody(Struct, kw_only=True):
    """POST /api/show"""

    model: Model | None = None
    name: str | None = None


# OpenAI's responses


class ItemPart(Struct, kw_only=True):
    type: Literal["input_text", "output_text", "text"]
    text: str


ItemContent = str | Annotated[list[ItemPart], Meta(max_length=MAX_PARTS)]


class MessageItem(Struct, tag="message", tag_field="type", kw_only=True):
    role: str
    content: ItemContent


class CallItem(Struct, tag="function_call", tag_field="type", kw_only=True):
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Struct, tag="function_call_output", tag_field="type", kw_only=True):
    call_id: str
    output: ItemContent


class CustomCallItem(Struct, tag="custom_tool_call", tag_field="type", kw_only=True):
    """A call whose argument is a text."""

    call_id: str
    name: str
    input: str


class CustomCallOutputItem(CallOutputItem, tag="custom_tool_call_output", tag_field="type", kw_only=True):
    """Like that of any call."""


class ShellCallItem(Struct, tag="local_shell_call", tag_field="type", kw_only=True):
    """A call of the shell that some models of OpenAI's know without being told."""

    action: Input
    call_id: str | None = None
    id: str | None = None


class ShellCallOutputItem(Struct, tag="local_shell_call_output", tag_field="type", kw_only=True):
    output: ItemContent
    call_id: str | None = None
    id: str | None = None


class ReasoningPart(Struct, kw_only=True):
    text: str | None = None


class ReasoningItem(Struct, tag="reasoning", tag_field="type", kw_only=True):
    """Of an earlier answer: told to the chat template, which may leave it out."""

    content: Annotated[list[ReasoningPart], Meta(max_length=MAX_PARTS)] | None = None


Item = (
    MessageItem
    | CallItem
    | CallOutputItem
    | CustomCallItem
    | CustomCallOutputItem
    | ShellCallItem
    | ShellCallOutputItem
    | ReasoningItem
)


class ResponsesTool(Struct, kw_only=True):
    """Tools of other types, which OpenAI's servers or models bring along, are left out."""

    type: Annotated[str, Meta(extra_json_schema={"const": "function"})]
    name: Any = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: NotUsed = None


class Reasoning(Struct, kw_only=True):
    effort: Effort | None = None
    summary: NotUsed = None


class TextFormat(Struct, kw_only=True):
    """The form of an answer, in the words of responses."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "json_object", "json_schema", "grammar"]})]
    name: str | None = None
    strict: bool | None = None
    schema: Any = None


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: NotUsed = None


class ResponsesBody(Struct, kw_only=True):
    """POST /v1/responses"""

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Model | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(description="of an answer that is kept here")] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    store: Annotated[bool, Meta(description="keep the answer for previous_response_id; true by default")] | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Any, Meta(description="auto, none, required, or a function by name")] = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    user: NotUsed = None
    metadata: NotUsed = None
    service_tier: NotUsed = None
    timings_per_token: Annotated[bool, Meta(description="events tell how fast the answer is (llama-server)")] | None = (
        None
    )
    return_progress: Annotated[
        bool, Meta(description="events tell how much of the prompt is read (llama-server)")
    ] | None = None  # fmt: skip
    prompt_cache_key: NotUsed = None
    prompt_cache_retention: NotUsed = None
    safety_identifier: NotUsed = None
    stream_options: NotUsed = None
    client_metadata: NotUsed = None
    include: Annotated[list[str], Meta(max_length=64, description="left out: nothing of it is to be had")] | None = None
    truncation: Annotated[str, Meta(description="auto is left out: a prompt that is too long is refused")] | None = None
    background: Unsupported = None
    conversation: Unsupported = None
    prompt: Unsupported = None
