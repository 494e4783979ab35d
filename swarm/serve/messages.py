"""Chat messages and tools, cut down to what chat templates know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swarm.model.text.template import RESERVED
from swarm.serve.arguments import MAX_DEPTH, for_template
from swarm.serve.body import clean_text, outside, wrong
from swarm.serve.errors import bad_field
from swarm.serve.requests import (
    MAX_OPTIONS,
    AssistantMessage,
    Conversation,
    Message,
    Parts,
    TextPart,
    Tool,
    ToolCallPart,
    ToolMessage,
)


def read_messages(items: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
    """The chat so far. Raises ApiError naming the message and field at fault."""
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items))


def instructed(messages: Sequence[Mapping[str, Any]], prompt: str) -> tuple[Mapping[str, Any], ...]:
    """The chat with a system prompt before its own, if any; as it is with none."""
    if not prompt:
        return tuple(messages)
    if messages and messages[0]["role"] == "system":
        told = {**messages[0], "content": joined_parts([prompt, messages[0]["content"]])}
        return (told, *messages[1:])
    return ({"role": "system", "content": prompt}, *messages)


def read_template_options(asked: Conversation, usual: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables of the chat template beside the messages: `usual` ones, `chat_template_kwargs`, and
    `reasoning_effort`, of which "none" also switches off thinking in the two ways in which templates spell it."""
    options = template_options_untrusted(asked.chat_template_kwargs or {}, "chat_template_kwargs")
    if (think := getattr(asked, "enable_thinking", None)) is not None:
        options = {"enable_thinking": think, **options}
    effort = asked.reasoning_effort
    if effort is None:
        return {**usual, **options}
    off = {"enable_thinking": False, "thinking": False} if effort == "none" else {}
    return {**usual, "reasoning_effort": effort, **off, **options}


def template_options_untrusted(options: Any, param: str) -> Mapping[str, Any]:
    """What may be variables of a chat template. Raises ApiError."""
    if not isinstance(options, dict):
        raise wrong(param, "an object", options)
    if len(options) > MAX_OPTIONS:
        raise bad_field(param, f"expected at most {MAX_OPTIONS} names, found {len(options)}")
    for name, value in options.items():
        shown = name[:80].encode("utf-8", "replace").decode()
        path = f"{param}.{shown}"
        if not name.isidentifier() or name.startswith("_") or name in RESERVED:
            raise bad_field(path, f"'{path}' is not a name that a chat template's options may have")
        _check_depth(value, path)
    return dict(options)


def _message(item: Message, path: str) -> Mapping[str, Any]:
    role = str(item.__struct_config__.tag)
    calls = item.tool_calls if isinstance(item, AssistantMessage) else None
    if item.content is None and not calls:
        raise wrong(f"{path}.content", "a string", None)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": _content(item.content)}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    if isinstance(item, ToolMessage):
        message["tool_call_id"] = item.tool_call_id
    if isinstance(item, AssistantMessage) and item.reasoning_content:
        message["reasoning_content"] = item.reasoning_content
    if item.name is not None:
        message["name"] = item.name
    return message


def _content(value: str | Parts | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return joined_parts(part.text if isinstance(part, TextPart) else part.refusal for part in value)


def joined_parts(texts: Iterable[str]) -> str:
    """The parts of one message as one text, an empty line between them, as llama-server has it: programs send a
    paragraph or a document a part, and without a line between, the last word of one runs into the first of the next."""
    return "\n\n".join(texts)


def _call(call: ToolCallPart) -> Mapping[str, Any]:
    # Templates print arguments themselves, so they want the value, not its text.
    arguments = for_template(call.function.arguments)
    return {"id": call.id or "", "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def read_tools(asked: Conversation) -> tuple[Mapping[str, Any], ...]:
    """The tools on offer; none when tool_choice is "none"."""
    tools = tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(asked.tools or ()))
    choice = asked.tool_choice
    if choice is None or choice == "auto":
        return tools
    if choice == "none":
        return ()
    if choice == "required" or isinstance(choice, dict):
        return tools  # one must be called: `swarm.serve.structured`
    expected = "none, auto, required, or an object that names a tool"
    raise (outside if isinstance(choice, str) else wrong)("tool_choice", expected, choice)


def _tool(item: Tool, path: str) -> Mapping[str, Any]:
    function = item.function
    parameters = function.parameters if function.parameters is not None else {"type": "object", "properties": {}}
    _check_depth(parameters, f"{path}.function.parameters")
    cleaned = {"name": function.name, "description": function.description or "", "parameters": parameters}
    return {"type": "function", "function": cleaned}


def _check_depth(value: Any, path: str, depth: int = 0) -> None:
    """Templates print tools by recursion, and every string in them reaches the tokenizer."""
    if depth > MAX_DEPTH:
        raise bad_field(path, f"'{path}' is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        clean_text(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            clean_text(key, path)
            _check_depth(item, path, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, path, depth + 1)
