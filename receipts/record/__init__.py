"""Who keeps and signs what while a run goes on.

The faces are `requester.RequesterRecord`, `stage.StageRecord` and `witness.WitnessRecord`. `edge`, `tail`, `own` and
`work` are what they count, `rows` keeps frames for audits, `row_opening` and `opening_answer` open them, `log` is
everything that a node ever signed.
"""
