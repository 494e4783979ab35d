"""What both halves of a run share: the bytes between them, and what they sign.

`frame` (rows and answers as bytes), `opening` (how a ring opens and closes), `connect` (how its edges are made),
`certain_rows` and `kept_rows` (what recovery sends again), and receipts: `signer`, `receipt_log`, `order_check`,
`witness_service`, `transparency_log`. The halves are `stage` and `run`; they do not import each other.
"""
