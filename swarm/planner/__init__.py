"""Which node takes which layers, and which nodes a run goes through: pure decisions over plain data.

The face is `api`: `choose_block`, `plan_route`, and the records they read (`Member`, `ModelShape`, `Rtts`). No sockets,
no clock. `costs` is what passes cost, `forecast` what a route will give, `dry_run` is `swarm plan`.
"""
