"""Chat messages and tools, checked and cut down to what chat templates know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from swarm.model.text.template import RESERVED
from swarm.serve.errors import bad_field
from swarm.serve.fields import Fields, clean_text, describe

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 128
MAX_OPTIONS = 64
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    """The chat so far. Raises ApiError naming the message and field at fault."""
    items = fields.array("messages", MAX_MESSAGES)
    if items is None:
        raise fields.wrong("messages", "an array of messages")
    if not items:
        raise bad_field("messages", "expected at least one message in 'messages', found an empty array")
    return tuple(_message(Fields(item, f"messages[{index}]")) for index, item in enumerate(items))


def read_template_options(fields: Fields) -> Mapping[str, Any]:
    """Variables of the chat template beside the messages: `chat_template_kwargs`, and `reasoning_effort`, of which
    "none" also switches off thinking in the two ways in which templates spell it."""
    given = fields.get("chat_template_kwargs")
    options = dict(Fields({} if given is None else given, "chat_template_kwargs").values)
    if len(options) > MAX_OPTIONS:
        raise bad_field("chat_template_kwargs", f"expected at most {MAX_OPTIONS} names, found {len(options)}")
    for name, value in options.items():
        shown = name[:80].encode("utf-8", "replace").decode()
        path = f"chat_template_kwargs.{shown}"
        if not name.isidentifier() or name.startswith("_") or name in RESERVED:
            raise bad_field(path, f"'{path}' is not a name that a chat template's options may have")
        _check_depth(value, path)
    effort = fields.text("reasoning_effort")
    if effort is None:
        return options
    if not 1 <= len(effort) <= 64:
        raise fields.outside("reasoning_effort", "1 to 64 characters long")
    off = {"enable_thinking": False, "thinking": False} if effort == "none" else {}
    return {"reasoning_effort": effort, **off, **options}


def _message(fields: Fields) -> Mapping[str, Any]:
    role = fields.need_text("role")
    if role not in ROLES:
        raise fields.outside("role", "one of " + ", ".join(ROLES))
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = fields.array("tool_calls", MAX_TOOLS) if role == "assistant" else None
    content = fields.get("content")
    if content is None and not calls:
        raise fields.wrong("content", "a string")
    message["content"] = "" if content is None else _content(fields)
    if calls:
        message["tool_calls"] = [
            _call(Fields(call, f"{fields.where}.tool_calls[{index}]")) for index, call in enumerate(calls)
        ]
    if role == "tool":
        message["tool_call_id"] = fields.need_text("tool_call_id")
    thought = fields.text("reasoning_content") if role == "assistant" else None
    if thought:
        message["reasoning_content"] = thought
    name = fields.text("name")
    if name is not None:
        message["name"] = name
    return message


def _content(fields: Fields) -> str:
    value = fields.get("content")
    if isinstance(value, str):
        return clean_text(value, fields.path("content"))
    parts = fields.array("content", MAX_PARTS) if isinstance(value, list) else None
    if parts is None:
        raise fields.wrong("content", "a string or an array of text parts")
    return "".join(_part(Fields(part, f"{fields.where}.content[{index}]")) for index, part in enumerate(parts))


def _part(fields: Fields) -> str:
    kind = fields.need_text("type")
    if kind == "refusal":
        return fields.need_text("refusal")
    if kind != "text":
        path = fields.path("type")
        raise bad_field(path, f"expected '{path}' to be text (the model reads text only), found {kind[:80]!r}")
    return fields.need_text("text")


def _call(fields: Fields) -> Mapping[str, Any]:
    if fields.text("type", "function") != "function":
        raise fields.outside("type", "function")
    function = Fields(fields.get("function"), fields.path("function"))
    name = function.need_text("name")
    text = function.need_text("arguments")
    try:
        # Templates print arguments themselves, so they want the value, not its text.
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as exc:
        path = function.path("arguments")
        raise bad_field(path, f"expected '{path}' to hold JSON, found: {exc}") from exc
    if not isinstance(arguments, dict):
        path = function.path("arguments")
        raise bad_field(path, f"expected '{path}' to hold a JSON object, found {describe(arguments)}")
    _check_depth(arguments, function.path("arguments"))
    return {
        "id": fields.text("id", ""),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def read_tools(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    """The tools on offer; none when tool_choice is "none"."""
    items = fields.array("tools", MAX_TOOLS) or []
    tools = tuple(_tool(Fields(item, f"tools[{index}]")) for index, item in enumerate(items))
    choice = fields.get("tool_choice")
    if choice is None or choice == "auto":
        return tools
    if choice == "none":
        return ()
    if choice == "required" or isinstance(choice, dict):
        return tools  # one must be called: `swarm.serve.structured`
    expected = "none, auto, required, or an object that names a tool"
    raise fields.outside("tool_choice", expected) if isinstance(choice, str) else fields.wrong("tool_choice", expected)


def _tool(fields: Fields) -> Mapping[str, Any]:
    if fields.need_text("type") != "function":
        raise fields.outside("type", "function")
    function = Fields(fields.get("function"), fields.path("function"))
    name = function.need_text("name")
    if not 1 <= len(name) <= 64:
        raise function.outside("name", "1 to 64 characters long")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise function.wrong("parameters", "a JSON schema object")
    cleaned: dict[str, Any] = {"name": name, "description": function.text("description", "") or ""}
    cleaned["parameters"] = parameters if parameters is not None else {"type": "object", "properties": {}}
    _check_depth(cleaned["parameters"], function.path("parameters"))
    return {"type": "function", "function": cleaned}


def _check_depth(value: Any, path: str, depth: int = 0) -> None:
    """Templates print tools by recursion, and every string in them reaches the tokenizer."""
    if depth > 32:
        raise bad_field(path, f"'{path}' is nested more than 32 deep")
    if isinstance(value, str):
        clean_text(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            clean_text(key, path)
            _check_depth(item, path, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, path, depth + 1)
