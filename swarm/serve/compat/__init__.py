"""Other APIs than OpenAI's, for clients that speak them: translations onto the gateway's one kind of chat request.

`ollama`, `anthropic` and `responses` (OpenAI's newer API) turn their bodies into chat requests and chat chunks into
their own. Nothing is kept between requests but the answers that a next turn may go on from (`kept`). `shapes` is what
they share: errors by path, and the limits of a translation.
"""
