"""llama.cpp's tests that are known to fail here, and why: each must go on failing, and no other may."""

KNOWN = {
    "test_cors_options[origin-Access-Control-Allow-Credentials-true]": (
        "any page would be let act with what a browser sends along by itself"
    ),
    "test_cors_options[web.mydomain.fr-Access-Control-Allow-Headers-*]": (
        "keys are headers here, and `*` does not cover `Authorization` in browsers"
    ),
    "test_server_model_aliases_and_tags": (
        "a model's entry has its `aliases`; they are listed besides, since clients look for the name that they were "
        "given; there are no tags"
    ),
    "test_anthropic_empty_messages": "a chat without messages is refused, as Anthropic's own API does",
    "test_responses_stream_with_llama_telemetry": (
        "the telemetry is there, but an answer cut by `max_output_tokens` ends with `response.incomplete`, as OpenAI's "
        "own does, not `response.completed`"
    ),
}
"""`docs/integrations.md` has the same list."""
