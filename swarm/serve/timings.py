"""How fast an answer was, in the words of llama-server's `timings`."""

from __future__ import annotations

from typing import Any

from swarm.run.api import RunResult


def timings(result: RunResult, prompt: int, written: int) -> dict[str, Any]:
    """`prompt` and `written` in tokens. What other runs of the same prompt had left stands under `cache_n`."""
    cached = result.cached_prompt_tokens
    read_ms = result.ttft_seconds * 1000
    write_ms = max(0.0, result.seconds * 1000 - read_ms)
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
