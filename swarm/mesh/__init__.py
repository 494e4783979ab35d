"""Who is there: records of members, how they spread, who may belong, how far nodes are from each other.

The face is `gossip.Gossip`, the shell round `apply.apply(state, event, now) -> (state, actions)`, which decides
everything and does no I/O. `record.NodeRecord` is what a node says of itself, `invite` and `admission` open the door,
`saved` is what survives a restart, `weights` gives blobs to other members, `status` tells the dashboard.
"""
