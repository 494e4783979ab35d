"""Other APIs than OpenAI's, for clients that speak them: translations onto the gateway's one kind of chat request.

`ollama` and `anthropic` turn their bodies into OpenAI's and OpenAI's chunks into theirs; nothing is kept between
requests. `shapes` is what both share: errors by path, and the limits of a translation.
"""
