"""Into a swarm, and from what the mesh knows to what the planner reads.

The one room that knows both mesh and planner: `planner_view`, `model_shape`, `rtt_probing`. `bootstrap` enters by
invite, memory or local network, `bootstrap_node` founds as well; `connect` and `introducers` make edges between
members; `state_dir` is the state folder.
"""
