"""Whoever asks: a guest of a swarm with tokenizer and drafter, ready to run.

The face is `client.Requester`; for programs `async_client.AsyncClient` and `sync_client.Client` (docs/python.md).
`target_model` is its own copy of the served model's ends, `router` chooses who takes part (within the user's
`route_policy`), `drafters` what drafts.
"""
