"""Clients that chat, stream, call tools and score, against a running gateway: `python tests/clients/plain.py URL`.

Needs openai, anthropic, ollama, litellm[proxy], llm and lm-eval[api], in an environment of their own. Prints a line for
each with its version; ends with 1 when one of them did not get what it asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trials import Trial, try_all

HELLO: Any = [{"role": "user", "content": "Name a river."}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Ghent", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
CITIES = ("Ghent", "Paris")


def with_openai(url: str, model: str) -> str:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="unused", max_retries=0)
    asked: Any = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)
    assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    first = client.responses.create(model=model, input="Name a river.", max_output_tokens=12)
    after = client.responses.create(model=model, input="Another.", previous_response_id=first.id, max_output_tokens=12)
    assert after.usage.input_tokens > first.usage.input_tokens
    return f"{after.usage.total_tokens} tokens"


def with_anthropic(url: str, model: str) -> str:
    from anthropic import Anthropic

    client = Anthropic(base_url=url.removesuffix("/v1"), api_key="unused", max_retries=0)
    tools: Any = [{"name": "weather", "input_schema": SCHEMA}]
    asked: Any = {"model": model, "max_tokens": 60, "messages": HELLO, "tools": tools, "tool_choice": {"type": "any"}}
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    (use,) = (block for block in final.content if block.type == "tool_use")
    assert use.input["city"] in CITIES and final.stop_reason == "tool_use"
    result: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}]
    turns: Any = [*HELLO, {"role": "assistant", "content": final.content}, {"role": "user", "content": result}]
    told = client.messages.create(model=model, max_tokens=12, messages=turns, tools=tools)
    return f"{told.usage.output_tokens} tokens after {use.input}"


def with_ollama(url: str, model: str) -> str:
    from ollama import Client

    client = Client(host=url.removesuffix("/v1"))
    options = {"num_predict": 12, "temperature": 0}
    whole = client.chat(model=model, messages=HELLO, options=options).message.content
    parts = client.chat(model=model, messages=HELLO, options=options, stream=True)
    assert whole == "".join(part.message.content or "" for part in parts)
    told = client.chat(model=model, messages=HELLO, format=SCHEMA)
    assert json.loads(told.message.content or "")["city"] in CITIES
    return f"{told.eval_count} tokens"


def with_litellm(url: str, model: str) -> str:
    return _litellm(url, f"openai/{model}")


def with_litellm_vllm(url: str, model: str) -> str:
    return _litellm(url, f"hosted_vllm/{model}")


def with_litellm_anthropic(url: str, model: str) -> str:
    return _litellm(url.removesuffix("/v1"), f"anthropic/{model}")


def _litellm(url: str, model: str) -> str:
    import litellm

    asked: Any = {"model": model, "api_base": url, "api_key": "unused", "messages": HELLO}
    whole = litellm.completion(**asked, max_tokens=12, temperature=0).choices[0].message.content
    chunks = litellm.completion(**asked, max_tokens=12, temperature=0, stream=True)
    assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    told = litellm.completion(**asked, tools=[TOOL], tool_choice="required", max_tokens=60)
    (call,) = told.choices[0].message.tool_calls
    return _city(call.function.arguments)


def _city(arguments: str) -> str:
    """litellm takes `additionalProperties` out of schemas for some servers: a model of no sense then goes on."""
    (found,) = (city for city in CITIES if arguments.startswith(f'{{"city": "{city}"'))
    return found


def with_litellm_proxy(url: str, model: str) -> str:
    """Its proxy as a process, before this gateway, asked by openai's client."""
    from openai import OpenAI

    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        entry = {"model": f"hosted_vllm/{model}", "api_base": url, "api_key": "unused"}
        config = Path(folder) / "config.yaml"
        rest = {"general_settings": {"master_key": "sk-river"}}
        config.write_text(json.dumps({"model_list": [{"model_name": "river", "litellm_params": entry}], **rest}))
        program = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--port", str(port)]
        with _running(program, f"http://127.0.0.1:{port}/health/liveliness"):
            return with_openai_chat(f"http://127.0.0.1:{port}", "river", OpenAI)


def with_openai_chat(url: str, model: str, client: Any) -> str:
    told = client(base_url=url, api_key="sk-river", max_retries=0).chat.completions.create(
        model=model, messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=60
    )
    (call,) = told.choices[0].message.tool_calls
    return _city(call.function.arguments)


@contextlib.contextmanager
def _running(program: list[str], ready: str) -> Iterator[None]:
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, "the proxy ended"
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()


def with_llm(url: str, model: str) -> str:
    """Its program, with the model in its own file of models."""
    with tempfile.TemporaryDirectory() as folder:
        entry = {"model_id": "river", "model_name": model, "api_base": url}
        (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps([entry]))
        program = [str(Path(sys.executable).with_name("llm")), "-m", "river", "-o", "max_tokens", "12", "Name a river."]
        paths = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "unused"}
        told = subprocess.run(program, env=paths, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        return f"{len(told.stdout)} characters"


TASK = """\
task: rivers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def with_lm_eval(url: str, model: str) -> str:
    """A task of its own, four choices scored by what the model says of their tokens, and the sum recomputed."""
    with tempfile.TemporaryDirectory() as folder:
        data, home = Path(folder) / "rivers.json", {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder}
        question = {"question": "A river of France:", "choices": ["Seine", "Po", "Ebro", "Elbe"], "answer": 0}
        data.write_text(json.dumps(question) + "\n")
        (Path(folder) / "rivers.yaml").write_text(TASK.format(data=data))
        options = f"model={model},base_url={url}/completions,tokenizer_backend=remote,tokenized_requests=True"
        program = [str(Path(sys.executable).with_name("lm_eval")), "--model", "local-completions", "--tasks", "rivers"]
        program += ["--include_path", folder, "--model_args", options, "--output_path", folder, "--log_samples"]
        told = subprocess.run(program, env=home, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr[-2000:]
        (samples,) = Path(folder).glob("**/samples_rivers_*.jsonl")
        (sample,) = (json.loads(line) for line in samples.read_text().splitlines())
        scores = [float(score) for ((score, _),) in sample["resps"]]
        assert len(scores) == 4 and all(score < 0 for score in scores), scores
        return f"scores {', '.join(f'{score:.1f}' for score in scores)}"


TRIALS: dict[str, Trial] = {
    "openai chat, responses": with_openai,
    "anthropic tools": with_anthropic,
    "ollama chat, format": with_ollama,
    "litellm openai/": with_litellm,
    "litellm hosted_vllm/": with_litellm_vllm,
    "litellm anthropic/": with_litellm_anthropic,
    "litellm proxy": with_litellm_proxy,
    "llm": with_llm,
    "lm-eval local-completions": with_lm_eval,
}


def main() -> None:
    """Try all of them, or those whose names begin with an argument."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for a list of prices on another host
    try_all(TRIALS)


if __name__ == "__main__":
    main()
