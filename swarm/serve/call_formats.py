"""How families of models write calls of tools, by the marks that their chat templates have. Pure readers of a tape.

Sources: the chat templates that the models came with, and the tool parsers of vLLM and llama.cpp. A reader says a call
as soon as its name is known to be one on offer, then its arguments as they come; what turns out to be none
before that raises NotACallError and is text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.serve.tape import NotACallError, Reader, Tape, ahead, blank, expect, json_value, until, within

Schemas = Mapping[str, Mapping[str, Any]]
"""Of the tools on offer, by name: the JSON Schema of their arguments."""
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "tool_call_id")
MAX_HEAD = 400
"""Characters of what names a call or one of its arguments; no name on offer is longer."""
_HEAD = re.compile(r"""\s*name\s*=\s*["']?([^"'<>\s]+)["']?(?:\s+string\s*=\s*["']?\w+["']?)?\s*""")
_PYTHON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class CallFormat:
    """What begins calls, what reads them, what may end them, and what begins and ends each of several."""

    opens: str
    read: Callable[[Tape, Schemas], Reader]
    closes: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    @property
    def stops(self) -> tuple[str, ...]:
        """Marks that no arguments go on behind."""
        return tuple(mark for mark in (self.opens, *self.closes, *self.begins, *self.ends) if mark)


def name_on_offer(name: str, tools: Schemas) -> str:
    """Raises NotACallError for a name that is none of them."""
    if name not in tools:
        raise NotACallError("no tool on offer")
    return name


def json_call(tape: Tape, tools: Schemas) -> Reader:
    """{"name": ..., "arguments": ...}, in any order, or such an object as the "function" of another."""
    yield from expect(tape, "{")
    name, own, begun, held, others = "", "", False, "", False
    while True:
        yield from blank(tape)
        if (yield from expect(tape, "}", ",", '"')) == "}":
            break
        if tape.before() == ",":
            continue
        tape.at -= 1
        key = yield from _string(tape)
        yield from blank(tape)
        yield from expect(tape, ":")
        yield from blank(tape)
        if key == "function" and not begun and (yield from ahead(tape, "{")):
            yield from json_call(tape, tools)
            begun = True
        elif key in _NAMES and not name:
            name = name_on_offer((yield from _string(tape)), tools)
        elif key in _IDS and not begun and (yield from ahead(tape, '"')):
            own = yield from _string(tape)
        elif key in _ARGUMENTS and name and not begun:
            tape.say("call", name, own)
            begun = True
            yield from _arguments(tape)
        else:
            parts: list[str] = []
            yield from json_value(tape, parts.append)
            held = "".join(parts) if key in _ARGUMENTS else held
            others = others or key not in (*_NAMES, *_IDS, *_ARGUMENTS, "type", "index")
    if not begun:
        if not name or (others and not held):
            raise NotACallError("no name, or no arguments but something else")
        tape.say("call", name, own)
        tape.say("arguments", _plain(held))
    tape.settle()


def _arguments(tape: Tape) -> Reader:
    """Letter for letter; arguments within a string are what it says."""
    if (yield from ahead(tape, "{", "[")):
        whole = yield from json_value(tape, lambda text: tape.say("arguments", text))
        tape.settle(unfinished=not whole and not tape.rest)
        if tape.unfinished:
            raise NotACallError("cut short")
        return
    parts: list[str] = []
    whole = yield from json_value(tape, parts.append)
    tape.say("arguments", _plain("".join(parts)))
    tape.settle(unfinished=not whole and tape.ended)


def _plain(written: str) -> str:
    if not written.startswith('"'):
        return "{}" if written in ("", "null") else written
    try:
        return _sound(str(json.loads(written)))
    except ValueError:
        return written


def _sound(text: str) -> str:
    """Text that can be sent. JSON and Python can spell half of a surrogate pair: ValueError."""
    text.encode()
    return text


def _string(tape: Tape) -> Any:
    parts: list[str] = []
    yield from json_value(tape, parts.append)
    try:
        value = json.loads("".join(parts))
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise NotACallError("expected a string")
    return value.encode("utf-8", "replace").decode()


def json_calls(tape: Tape, tools: Schemas) -> Reader:
    """One object, a list of them, or several after each other, with commas, semicolons or nothing between."""
    yield from blank(tape)
    inside = (yield from expect(tape, "[", "{")) == "["
    tape.at -= not inside
    while True:
        yield from blank(tape)
        yield from json_call(tape, tools)
        end = tape.at
        yield from blank(tape)
        found = yield from ahead(tape, ",", ";", "]", "{")
        if found in (",", ";"):
            tape.at += 1
        elif found == "]" and inside:
            tape.at += 1
            return
        elif found != "{":
            tape.at = end
            return


def tool_call(tape: Tape, tools: Schemas) -> Reader:
    """Between <tool_call> marks: JSON (Hermes, Qwen), <function=...> (Qwen3-Coder) or <arg_key> pairs (GLM)."""
    yield from blank(tape)
    found = yield from ahead(tape, "{", "[", "<function=")
    if found == "<function=":
        tape.pass_over(found)
        yield from function_element(tape, tools)
    elif found:
        yield from json_calls(tape, tools)
    else:
        yield from argument_pairs(tape, tools)


def function_element(tape: Tape, tools: Schemas) -> Reader:
    """name>, <parameter=key>value</parameter> and so on, </function>."""
    name = name_on_offer((yield from within(tape, MAX_HEAD, ">"))[0].strip(" \"'"), tools)
    yield from _elements(tape, tools, name, "<parameter=", ">", "</parameter>", "</function>")


def invocations(prefix: str) -> Callable[[Tape, Schemas], Reader]:
    """<invoke name="..."><parameter name="...">value</parameter></invoke>, several (MiniMax; DeepSeek V3.2)."""

    def read(tape: Tape, tools: Schemas) -> Reader:
        count = 0
        while True:
            yield from blank(tape)
            if (yield from ahead(tape, f"<{prefix}invoke")) is None:
                if not count:
                    raise NotACallError("no invocation")
                return
            count += 1
            tape.pass_over(f"<{prefix}invoke")
            name = name_on_offer(_attribute((yield from within(tape, MAX_HEAD, ">"))[0]), tools)
            yield from _elements(
                tape, tools, name, f"<{prefix}parameter", ">", f"</{prefix}parameter>", f"</{prefix}invoke>"
            )

    return read


def _attribute(head: str) -> str:
    """What an element has for its name; "" where the head says anything else."""
    found = _HEAD.fullmatch(head)
    return found[1] if found is not None else ""


def _elements(tape: Tape, tools: Schemas, name: str, opens: str, then: str, closes: str, ends: str) -> Reader:
    """Parameters as elements, told as the members of a JSON object."""

    def one(tell: _Tell) -> Generator[None, None, bool]:
        if (yield from expect(tape, opens, ends)) == ends:
            return False
        head = (yield from within(tape, MAX_HEAD, then))[0].strip()
        key = head.strip("\"'") if opens.endswith("=") else _attribute(head)
        if not key or "<" in key or "\n" in key:
            raise NotACallError("expected the name of a parameter")
        value, whole = yield from _value(tape, closes, opens, ends)
        value = value.removeprefix("\n").removesuffix("\n")
        tell(key, json.dumps(value) if 'string="true"' in head else as_json(value, tools[name], key), whole)
        return True

    tape.say("call", name)
    yield from _members(tape, one)


def _value(tape: Tape, closes: str, opens: str, ends: str) -> Generator[None, None, tuple[str, bool]]:
    """What an element says, and whether it was closed. Models forget the closing mark: then the next element ends it on
    a line of its own, or the end of the call with what may come after one."""
    said = ""
    lines = tuple(mark if mark in tape.special else f"\n{mark}" for mark in (opens, ends))
    while True:
        more: list[str] = []
        mark = yield from until(tape, (closes, *lines), more.append)
        said += "".join(more)
        if mark is None:
            return said, False
        if mark == closes:
            tape.pass_over(mark)
            return said, True
        if mark == lines[0] or (yield from _over(tape, mark)):
            return said, True
        said += tape.take_over(mark)


def _over(tape: Tape, mark: str) -> Generator[None, None, bool]:
    """Whether nothing but the end of calls, or another call, comes behind a mark that comes next."""
    begin = tape.at
    tape.pass_over(mark)
    yield from blank(tape)
    over = not tape.rest or (yield from ahead(tape, *tape.stops)) is not None
    tape.at = begin
    return over


_Tell = Callable[[str, str, bool], None]
"""Tells a member: its name, its value as JSON, and whether that is all of it."""


def _members(tape: Tape, one: Callable[[_Tell], Generator[None, None, bool]]) -> Reader:
    """The members of a JSON object, until `one` finds no more or something else comes, which is left. The object is
    then closed, unless the answer ends within a member: what is cut short should not look whole."""
    comma, closed = "", True

    def tell(key: str, value: str, whole: bool) -> None:
        nonlocal comma, closed
        closed = whole
        value = value if whole else value.removesuffix('"')
        tape.say("arguments", f"{comma}{json.dumps(key, ensure_ascii=False)}: {value}")
        comma = ", "
        tape.settle(unfinished=True)

    tape.say("arguments", "{")
    tape.settle(unfinished=True)
    try:
        while True:
            yield from blank(tape)
            if not (yield from one(tell)):
                break
            if not closed:
                raise NotACallError("cut short")
    except NotACallError:
        tape.unfinished = tape.ended
        if closed:
            tape.say("arguments", "}")
        raise
    tape.say("arguments", "}")
    tape.settle()


def argument_pairs(tape: Tape, tools: Schemas) -> Reader:
    """name, then <arg_key>key</arg_key><arg_value>value</arg_value> pairs (GLM 4.5 and later)."""
    head, mark = yield from within(tape, MAX_HEAD, "<arg_key>", "</tool_call>")
    name = name_on_offer(head.strip(), tools)

    def one(tell: _Tell) -> Generator[None, None, bool]:
        if (yield from expect(tape, "<arg_key>", "</tool_call>")) != "<arg_key>":
            return False
        key = (yield from within(tape, MAX_HEAD, "</arg_key>"))[0].strip()
        yield from blank(tape)
        yield from expect(tape, "<arg_value>")
        value, whole = yield from _value(tape, "</arg_value>", "<arg_key>", "</tool_call>")
        tell(key, as_json(value, tools[name], key), whole)
        return True

    tape.at -= len(tape.written(mark))
    tape.say("call", name)
    yield from _members(tape, one)
    tape.at -= len(tape.written("</tool_call>"))
    tape.settle()


def as_json(value: str, schema: Mapping[str, Any], key: str) -> str:
    """A value that was written without quotes, as the tool's schema has it: text where it takes text, else JSON."""
    members = schema.get("properties")
    wanted = members.get(key) if isinstance(members, dict) else None
    written = value.strip()
    written = _PYTHON.get(written, written)
    if not _takes_text(wanted):
        try:
            json.loads(written, parse_constant=_no_number)
            return written
        except (ValueError, RecursionError):
            pass
    return json.dumps(value, ensure_ascii=False)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _takes_text(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kinds = schema.get("type")
    if kinds is not None:
        return "string" in ([kinds] if isinstance(kinds, str) else kinds)
    if isinstance(schema.get("enum"), list):
        return any(isinstance(item, str) for item in schema["enum"])
    return any(_takes_text(part) for name in ("anyOf", "oneOf") for part in schema.get(name) or ())


def mistral(tape: Tape, tools: Schemas) -> Reader:
    """After [TOOL_CALLS]: a list of objects, or name[CALL_ID]id[ARGS]{...}, or name{...}, each with its mark."""
    yield from blank(tape)
    if (yield from ahead(tape, "[{", "{", "[ ", "[\n")):
        yield from json_calls(tape, tools)
        return
    own = ""
    name, mark = yield from within(tape, MAX_HEAD, "[CALL_ID]", "[ARGS]", "{")
    name_on_offer(name.strip(), tools)
    if mark == "[CALL_ID]":
        own, mark = yield from within(tape, MAX_HEAD, "[ARGS]", "{")
    tape.at -= mark == "{"
    tape.say("call", name.strip(), own.strip())
    yield from blank(tape)
    yield from _arguments(tape)


def _opened(tape: Tape, mark: str, first: bool) -> Generator[None, None, bool]:
    """Whether the mark of one more call comes, which is then taken; the first one must."""
    yield from blank(tape)
    if not first and (yield from ahead(tape, mark)) is None:
        return False
    yield from expect(tape, mark)
    return True


def _after(tape: Tape, *marks: str) -> Reader:
    """Pass over those of these marks that come, in this order. Behind a call there may be white space between."""
    for mark in marks:
        yield from blank(tape)
        if (yield from ahead(tape, mark)) is not None:
            tape.pass_over(mark)
            tape.settle()
    tape.at = tape.settled


def deepseek(tape: Tape, tools: Schemas) -> Reader:
    """Calls in marks of their own: name, separator, JSON (V3.1); or a type, separator, name, a block of JSON (V3)."""
    first = True
    while True:
        if not (yield from _opened(tape, "<｜tool▁call▁begin｜>", first)):
            return
        first = False
        head, _ = yield from within(tape, MAX_HEAD, "<｜tool▁sep｜>")
        fenced = head.strip() == "function" and "function" not in tools
        if fenced:
            head, _ = yield from within(tape, MAX_HEAD, "```json", "\n")
            yield from blank(tape)
            if (yield from ahead(tape, "```json")):
                tape.at += len("```json")
            yield from blank(tape)
        tape.say("call", name_on_offer(head.strip(), tools))
        yield from blank(tape)
        yield from _arguments(tape)
        yield from _after(tape, *(["```"] if fenced else []), "<｜tool▁call▁end｜>")


def kimi(tape: Tape, tools: Schemas) -> Reader:
    """Calls with ids of the form functions.name:0 between their own marks."""
    first = True
    while True:
        if not (yield from _opened(tape, "<|tool_call_begin|>", first)):
            return
        first = False
        own, _ = yield from within(tape, MAX_HEAD, "<|tool_call_argument_begin|>")
        own = own.strip()
        name = name_on_offer(own.removeprefix("functions.").rpartition(":")[0] or own, tools)
        tape.say("call", name, own)
        yield from blank(tape)
        yield from _arguments(tape)
        yield from _after(tape, "<|tool_call_end|>")


def pythonic(tape: Tape, tools: Schemas) -> Reader:
    """[name(key=value, ...), ...] with Python's literals (Llama 3.2 and 4, LFM2). A call is told when it is whole."""
    yield from blank(tape)
    yield from expect(tape, "[")
    while True:
        yield from blank(tape)
        name = name_on_offer((yield from within(tape, MAX_HEAD, "("))[0].strip(), tools)
        parts: list[str] = []
        tape.at -= 1
        yield from _parenthesis(tape, parts.append)
        arguments = _keywords("".join(parts))
        tape.say("call", name)
        tape.say("arguments", arguments)
        tape.settle()
        yield from blank(tape)
        if (yield from expect(tape, ",", "]")) == "]":
            return


def _parenthesis(tape: Tape, tell: Callable[[str], None]) -> Reader:
    """Up to the parenthesis that closes this one, strings in either quotes passed over."""
    depth, quote, escaped = 0, "", False
    while True:
        rest = tape.rest
        for place, char in enumerate(rest):
            if quote:
                quote = "" if char == quote and not escaped else quote
                escaped = not escaped and char == "\\"
            elif char in "\"'":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            if depth == 0 and not quote:
                tell(rest[: place + 1])
                tape.at += place + 1
                return
        tell(rest)
        tape.at += len(rest)
        if tape.ended:
            raise NotACallError("cut short")
        yield


def _keywords(written: str) -> str:
    """The JSON of keyword arguments. Raises NotACallError for what is more than literals."""
    try:
        call = ast.parse(f"f{written}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError
        told = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        return _sound(json.dumps(told, ensure_ascii=False, allow_nan=False))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise NotACallError("expected keyword arguments of literals") from error


ALWAYS = (
    CallFormat("<tool_call>", tool_call, ("</tool_call>",), ("<function=",)),
    CallFormat("[TOOL_CALLS]", mistral),
    CallFormat("<|python_tag|>", json_calls),
)
"""Known whatever the template says: models were taught these by other templates too."""
BY_TEMPLATE = (
    CallFormat("<function=", function_element, ("</tool_call>",)),
    CallFormat("<minimax:tool_call>", invocations(""), ("</minimax:tool_call>",), ("<invoke",)),
    CallFormat(
        "<｜DSML｜function_calls>", invocations("｜DSML｜"), ("</｜DSML｜function_calls>",), ("<｜DSML｜invoke",)
    ),
    CallFormat(
        "<｜tool▁calls▁begin｜>",
        deepseek,
        ("<｜tool▁calls▁end｜>",),
        ("<｜tool▁call▁begin｜>",),
        ("<｜tool▁call▁end｜>",),
    ),
    CallFormat(
        "<|tool_calls_section_begin|>",
        kimi,
        ("<|tool_calls_section_end|>",),
        ("<|tool_call_begin|>",),
        ("<|tool_call_end|>",),
    ),
    CallFormat("<|python_start|>", pythonic, ("<|python_end|>",)),
    CallFormat("<|tool_call_start|>", pythonic, ("<|tool_call_end|>",)),
    CallFormat("<|tool_call|>", json_calls, ("<|/tool_call|>",)),
    CallFormat("<tool_calls>", json_calls, ("</tool_calls>",)),
    CallFormat("<TOOLCALL>", json_calls, ("</TOOLCALL>",)),
    CallFormat("<|START_ACTION|>", json_calls, ("<|END_ACTION|>",)),
)
BARE_PYTHON = ("(params_name1=", "<|python_start|>")
"""Templates that have one of these may have calls written as Python without any mark, as the whole answer."""
