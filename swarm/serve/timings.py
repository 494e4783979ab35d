"""How fast an answer is, in the words of llama-server's `timings` and `prompt_progress`."""

from __future__ import annotations

from typing import Any

from swarm.run.api import PromptRead, RunResult


def timings(result: RunResult, prompt: int, written: int) -> dict[str, Any]:
    """`prompt` and `written` in tokens. What other runs of the same prompt had left stands under `cache_n`."""
    read_ms = result.ttft_seconds * 1000
    write_ms = max(0.0, result.seconds * 1000 - read_ms)
    return _told(result.cached_prompt_tokens, prompt, written, read_ms, write_ms)


def timings_so_far(read: PromptRead, prompt: int, written: int, writing_s: float) -> dict[str, Any]:
    """Of an answer that is under way. `read`: the last that was told of its prompt, `writing_s` ago."""
    return _told(read.cached, prompt, written, read.seconds * 1000, writing_s * 1000)


def progress(read: PromptRead) -> dict[str, Any]:
    """How much of a prompt is read."""
    time_ms = round(read.seconds * 1000, 3)
    return {"total": read.total, "cache": read.cached, "processed": read.tokens, "time_ms": time_ms}


def _told(cached: int, prompt: int, written: int, read_ms: float, write_ms: float) -> dict[str, Any]:
    return {
        "cache_n": cached,
        **_pace("prompt", prompt - cached, read_ms),
        **_pace("predicted", written, write_ms),
    }


def _pace(name: str, tokens: int, ms: float) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(1000 * tokens / ms, 3) if ms else 0.0,
    }
