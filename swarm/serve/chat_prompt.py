"""From the messages of a chat to prompt ids: what single templates want otherwise than clients send it.

A template that asks for the date gets it. One without tools gets them described in the system message, in the way that
most models know (Hermes); ids of calls become those that a template takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from swarm.base.errors import UsageError
from swarm.model.text.template import TemplateOptions
from swarm.serve.backend import Backend
from swarm.serve.tools import Marks, short_id

Message = Mapping[str, Any]
NO_TOOLS_NOTE = "this model's chat template has no tools; they were described in the system message"
_HOW = (
    "You may call the tools below. To call one, write a JSON object with its name and arguments between tool_call "
    'tags, and nothing else:\n<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n'
    "Results come between tool_response tags. The tools, with JSON Schemas of their arguments:\n"
)


def takes_tools(template: Any) -> bool:
    """Whether a chat template (one, or several by name) looks at `tools`."""
    if isinstance(template, dict):
        return any(takes_tools(one) for one in template.values())
    return "tools" in str(template)


def offered(template: Any, options: TemplateOptions, today: date) -> TemplateOptions:
    """Variables that some templates ask for by names of their own, where nothing else gave them: today's date (Llama's
    would say one of 2024 else), and tools as JSON (firefunction's fails without)."""
    told = [tool["function"] for tool in options.tools] if takes_tools(template) else []
    tools = json.dumps(told, ensure_ascii=False) if told else ""
    known = {"date_string": f"{today:%d %b %Y}", "datetime": f"{today:%b %d %Y}", "functions": tools}
    asked = {name: value for name, value in known.items() if re.search(rf"\b{name}\b", str(template))}
    return replace(options, variables={**asked, **options.variables}) if asked else options


def chat_ids(
    backend: Backend, messages: Sequence[Message], options: TemplateOptions, today: date | None = None
) -> Sequence[int]:
    """Prompt ids of a chat. Raises UsageError when the template refuses it. `today`: None for this machine's."""
    template = getattr(backend.tokenizer, "chat_template", None)
    options = offered(template, options, today or date.today())
    if Marks.of(template).short_ids:
        messages = [_short_ids(message) for message in messages]
    if takes_tools(template):
        return backend.encode_chat(messages, options)
    if not options.tools and not any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return backend.encode_chat(messages, options)
    plain = TemplateOptions(variables=options.variables, turn=options.turn)
    told = [_in_words(message) for message in messages]
    if not options.tools:
        return backend.encode_chat(told, plain)
    how = _HOW + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in options.tools)
    if told[0]["role"] == "system":
        return backend.encode_chat([_with(told[0], f"{told[0]['content']}\n\n{how}"), *told[1:]], plain)
    try:
        return backend.encode_chat([{"role": "system", "content": how}, *told], plain)
    except UsageError:  # a template that takes no system message
        return backend.encode_chat([_with(told[0], f"{how}\n\n{told[0]['content']}"), *told[1:]], plain)


def _with(message: Message, content: str) -> Message:
    return {**message, "content": content}


def _in_words(message: Message) -> Message:
    """Calls and their results as text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    said = {name: value for name, value in message.items() if name != "tool_calls"}
    return _with(said, "\n".join([*([message["content"]] if message["content"] else []), *written]))


def _short_ids(message: Message) -> Message:
    if "tool_call_id" in message:
        return {**message, "tool_call_id": short_id(message["tool_call_id"])}
    if message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": short_id(call["id"])} for call in message["tool_calls"]]}
    return message
