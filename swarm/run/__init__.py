"""The requester's half: from a request to tokens, text and a receipt.

The face is `api` (`RunRequest` in, `RunEvent`s out) and `engine.RunEngine`. `run_loop` drives one run: `speculation`
decides what to send and believe, `controller` how much, `proposals` and `draft_steps` bring drafts, `ring_client` talks
to the ring and `routing` to whoever knows the swarm, `blame` and `suspects` choose whom to leave out when the ring
breaks, `receipt` keeps the account.
"""
