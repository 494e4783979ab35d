"""Scoring a text (echo with logprobs), answers of no token, fields that change logits, usage in every chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from openai import BadRequestError

from tests.swarm.serve.conftest import Served
from tests.swarm.serve.tiny import tiny_model

TEXT = "Once upon \N{GRINNING FACE} a time"


def known(served: Served, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return tiny_model(258)(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("most", [0, 3])
async def test_a_prompt_is_scored_token_by_token(served: Served, most: int, stream: bool) -> None:
    ids = list(served.backend.encode(TEXT))
    asked: dict[str, Any] = {"prompt": [ids, ids[:1]], "max_tokens": most, "echo": True, "logprobs": 2}
    if stream:
        parts: list[Any] = []
        async for chunk in await served.openai.completions.create(model=served.model, stream=True, **asked):
            parts += [choice for choice in chunk.choices if choice.index == 0]
        text, finish = "".join(part.text for part in parts), parts[-1].finish_reason
        told = [part.logprobs for part in parts if part.logprobs]
        own, top, tokens, offsets = (
            [entry for logprobs in told for entry in getattr(logprobs, name)]
            for name in ("token_logprobs", "top_logprobs", "tokens", "text_offset")
        )
    else:
        answer = await served.openai.completions.create(model=served.model, **asked)
        whole, other = answer.choices
        text, finish, found = whole.text, whole.finish_reason, whole.logprobs
        own, top, tokens, offsets = found.token_logprobs, found.top_logprobs, found.tokens, found.text_offset
        assert answer.usage.prompt_tokens == len(ids) + 1 and answer.usage.completion_tokens == 2 * most
        assert other.text[:1] == TEXT[:1] and other.logprobs.token_logprobs[0] is None
        assert len(other.logprobs.tokens) == 1 + most
    assert text.startswith(TEXT) and finish == "length" and (text == TEXT) == (most == 0)
    assert len(own) == len(top) == len(tokens) == len(offsets) == len(ids) + most
    assert own[0] is None and top[0] is None and offsets[0] == 0 and offsets[1] == 1
    logits = known(served, ids)
    for place, token in enumerate(ids[1:], 1):
        assert own[place] == pytest.approx(float(logits[place - 1, token]), abs=1e-4)
        assert max(top[place].values()) == pytest.approx(float(logits[place - 1].max()), abs=1e-4)
    (request, alone) = served.backend.requests
    assert request.prompt_ids == tuple(ids[:1]) and request.given == tuple(ids[1:]) and alone.given == ()


async def test_an_answer_of_no_token(served: Served) -> None:
    chat = await served.openai.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=0
    )
    assert chat.choices[0].message.content == "" and chat.choices[0].finish_reason == "length"
    assert chat.usage is not None and chat.usage.completion_tokens == 0 and chat.usage.prompt_tokens > 5
    text = await served.openai.completions.create(model=served.model, prompt=TEXT, max_tokens=0, echo=True)
    assert (text.choices[0].text, text.choices[0].finish_reason) == (TEXT, "length")
    async with served.http.post("/generate", json={"prompt": TEXT, "max_tokens": 0}) as answer:
        body = await answer.json()
        assert (body["text"], body["new_tokens"], body["finish_reason"]) == ("", 0, "length")


async def test_scores_are_the_models_own(served: Served) -> None:
    for more in ({"frequency_penalty": 1}, {"logit_bias": {"3": 1}}, {"extra_body": {"repetition_penalty": 1.1}},
                 {"extra_body": {"guided_choice": ["a"]}}):  # fmt: skip
        with pytest.raises(BadRequestError, match="probabilities are the model"):
            await served.openai.completions.create(model=served.model, prompt=TEXT, echo=True, logprobs=1, **more)


async def test_penalties_biases_and_least_lengths_reach_the_ring(served: Served) -> None:
    asked: dict[str, Any] = {"model": served.model, "prompt": TEXT, "max_tokens": 24}
    plain = await served.openai.completions.create(**asked)
    less = await served.openai.completions.create(**asked, presence_penalty=1.5, frequency_penalty=2)
    assert less.choices[0].text != plain.choices[0].text
    only = await served.openai.completions.create(**asked, logit_bias={"65": 100})
    assert set(only.choices[0].text) == {served.backend.decode([65])}
    banned = await served.openai.completions.create(**asked, extra_body={"logit_bias": [[65, 100], [66, False]]})
    assert banned.choices[0].text == only.choices[0].text
    shapings = [request.sampling.shaping for request in served.backend.requests]
    assert shapings[0] is None and shapings[1] is not None and (shapings[1].presence, shapings[1].frequency) == (1.5, 2)
    assert shapings[3] is not None and shapings[3].bias == ((65, 100.0), (66, -100.0))
    end = int(served.backend.tokenizer.eos_token_id)
    short = await served.openai.completions.create(**asked, logit_bias={str(end): 100})
    assert short.usage.completion_tokens == 0
    long = await served.openai.completions.create(**asked, logit_bias={str(end): 100}, extra_body={"min_tokens": 5})
    assert long.usage.completion_tokens == 5 and long.choices[0].finish_reason == "stop"
    with pytest.raises(BadRequestError, match="token ids from 0 to 257"):
        await served.openai.completions.create(**asked, logit_bias={"258": 1})


async def test_every_chunk_tells_the_tokens_so_far(served: Served) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [
        chunk
        async for chunk in await served.openai.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=6,
            stream=True,
            stream_options=asked,  # type: ignore[call-overload]
        )
    ]
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 6 and len(set(counts)) > 2
    assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1


async def test_special_tokens_are_shown_where_asked_for(served: Served) -> None:
    served.backend.script = "a<|im_start|>b<|im_start|>"
    for skip, expected in ((True, "ab"), (False, "a<|im_start|>b")):
        answer = await served.openai.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "Hi"}],
            logprobs=True,
            extra_body={"skip_special_tokens": skip},
        )
        assert answer.choices[0].message.content == expected
        text = await served.openai.completions.create(
            model=served.model, prompt="Hi", max_tokens=20, extra_body={"skip_special_tokens": skip}
        )
        assert text.choices[0].text == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_no_alternative_are_those_of_the_tokens(served: Served, stream: bool) -> None:
    asked: dict[str, Any] = {"model": served.model, "prompt": "Once", "max_tokens": 3}
    one = (await served.openai.completions.create(**asked, logprobs=1)).choices[0].logprobs
    if stream:
        parts = [part async for part in await served.openai.completions.create(**asked, logprobs=0, stream=True)]
        found = [part.choices[0].logprobs for part in parts if part.choices and part.choices[0].logprobs]
    else:
        found = [(await served.openai.completions.create(**asked, logprobs=0)).choices[0].logprobs]
    assert [value for each in found for value in each.token_logprobs] == one.token_logprobs
    assert not any(top for each in found for top in each.top_logprobs or ())
