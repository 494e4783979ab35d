"""A serving member: enters a swarm, takes a block, serves it, moves, leaves.

The face is `node.serve_block`, which wires the rooms; for programs `embedded` (docs/python.md). `block_manager` holds
what is served now, `host` chooses, loads and measures a block (kept by `benchmark_cache`), `rebalancer` moves it,
`weights` fetches it, `node_record` says what the node is, `address_check` and `bandwidth` what of it can be reached and
how fast.
"""
