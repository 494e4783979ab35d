"""Clients that ask for data of a given form, against a running gateway: `python tests/clients/structured.py URL`.

Needs openai, instructor, pydantic-ai-slim[openai] and langchain-openai, in an environment of their own. Prints a line
for each with its version; ends with 1 when one of them did not get its object.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field
from trials import Trial, try_all

ASK = "Ada Lovelace, 36, mathematician in London: give the person as JSON."


class Person(BaseModel, extra="forbid"):
    """A person."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=130)
    city: Literal["London", "Paris"]


def with_openai(url: str, model: str) -> Any:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="unused")
    told = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": ASK}], response_format=Person
    )
    return told.choices[0].message.parsed


def with_openai_tools(url: str, model: str) -> Any:
    from openai import OpenAI, pydantic_function_tool

    client = OpenAI(base_url=url, api_key="unused")
    told = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": ASK}],
        tools=[pydantic_function_tool(Person)],
        tool_choice={"type": "function", "function": {"name": "Person"}},
    )
    (call,) = told.choices[0].message.tool_calls or []
    return call.function.parsed_arguments


def with_instructor_tools(url: str, model: str) -> Any:
    return _instructor(url, model, "TOOLS")


def with_instructor_json_schema(url: str, model: str) -> Any:
    return _instructor(url, model, "JSON_SCHEMA")


def _instructor(url: str, model: str, mode: str) -> Any:
    import instructor
    from openai import OpenAI

    client = instructor.from_openai(OpenAI(base_url=url, api_key="unused"), mode=getattr(instructor.Mode, mode))
    return client.chat.completions.create(
        model=model, response_model=Person, max_retries=0, messages=[{"role": "user", "content": ASK}]
    )


def with_pydantic_ai_native(url: str, model: str) -> Any:
    from pydantic_ai import NativeOutput

    return _pydantic_ai(url, model, NativeOutput(Person))


def with_pydantic_ai_tools(url: str, model: str) -> Any:
    return _pydantic_ai(url, model, Person)


def _pydantic_ai(url: str, model: str, output: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    profile = OpenAIModelProfile(supports_json_schema_output=True)
    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="unused"), profile=profile)
    return Agent(chat, output_type=output, retries=0).run_sync(ASK).output


def with_langchain_json_schema(url: str, model: str) -> Any:
    return _langchain(url, model, "json_schema")


def with_langchain_function_calling(url: str, model: str) -> Any:
    return _langchain(url, model, "function_calling")


def _langchain(url: str, model: str, method: str) -> Any:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key="unused", model=model, max_retries=0)
    return chat.with_structured_output(Person, method=method).invoke(ASK)


TRIALS: dict[str, Trial] = {
    "openai": with_openai,
    "openai tools": with_openai_tools,
    "instructor JSON_SCHEMA": with_instructor_json_schema,
    "instructor TOOLS": with_instructor_tools,
    "pydantic-ai-slim NativeOutput": with_pydantic_ai_native,
    "pydantic-ai-slim tools": with_pydantic_ai_tools,
    "langchain-openai json_schema": with_langchain_json_schema,
    "langchain-openai function_calling": with_langchain_function_calling,
}
BY_TOOLS = {"openai tools", "instructor TOOLS", "pydantic-ai-slim tools", "langchain-openai function_calling"}
"""Those that need a model whose chat template takes tools."""


def gives_a_person(trial: Trial) -> Trial:
    """The same, which goes wrong for anything else."""

    def person(url: str, model: str) -> Person:
        found = trial(url, model)
        assert isinstance(found, Person), found
        return found

    return person


def excused(name: str, error: Exception) -> str | None:
    """A model without tools has no fault for which a client would be blamed."""
    without = name in BY_TOOLS and "no place for tools" in str(error)
    return "the model's chat template has no place for tools" if without else None


if __name__ == "__main__":
    try_all({name: gives_a_person(trial) for name, trial in TRIALS.items()}, excused)
