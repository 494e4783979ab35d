"""What every room may stand on: the one error root, events, settings, whole writes, names and addresses of nodes.

Look here for `SwarmError` and its kinds (`errors`), what a waiting person is told (`events`), frozen settings built at
the command line (`config`), files that are there whole or not at all (`files`), `NodeId` (`nodeid`), `Address`
(`address`), the form in which records and messages are declared, read and written (`codec`, `bounds`), what time it is
(`clock`), tasks and their owners (`tasks`), the end of a process (`life`), signals, locks
and an event loop in a thread (`signals`, `locks`, `blocking`). Imports nothing of ours.
"""
