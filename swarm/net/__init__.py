"""How bytes travel between nodes; knows no model and no swarm.

The face is `switchboard.Switchboard` (listens, dials, owns every connection and task) and `peer.Peer` (calls, handlers
and posts of one other node, whatever carries it). `identity` is the key that a node is known by, `members` who is one
of the swarm. Below lies `channel` (one authenticated connection), above `traversal` (ways to a node that cannot simply
be dialled).
"""
