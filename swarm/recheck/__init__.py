"""Recomputation of a run by whoever holds its receipt: replay of all of it, audit of rows that its nodes open.

The face is `check.check`. `replayer` and `auditor` recompute (`recompute`), `draw_distance`, `quantization_grid` and
`limits` say how far an honest node may be off, `calibrate` measures those limits, `dial` reaches the nodes. `files`
reads receipts from disk.
"""
