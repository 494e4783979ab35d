"""A node's half of a run: frames in, computed in fair batches, passed on.

The face is `server.StageServer`. A session's life: `admission`, `session_open`, `session`, `session_close`, all of them
listed in `sessions`; a frame's way: `batcher` (when and with whom: `scheduler`), `compute`, `sender`.
The parts know each other by what they share, the stage's `context`.
"""
