"""One authenticated, encrypted, ordered connection between two identities.

The face is `channel.Channel`, opened by `opening` over the Noise handshake (`handshake`, `noise`). `lanes` lets small
messages pass large ones, `record` seals, `pacing` and `keepalive` keep the road short and open, `message` and `wire`
are the bytes of messages and tensors, `limits` every bound. The cores do no I/O.
"""
