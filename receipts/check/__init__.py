"""What a receipt proves: claims, their standing, a verdict.

The face is `verify.verify`. `checks` and `content` hold statements against each other, `audit`, `recompute` and
`token_stats` judge recomputation, `sequence_check` holds several receipts together, `report` and `draw` tell people.
"""
