"""What people see in a terminal: progress, status, plans, chat, what is wrong with this machine.

`progress` draws events, `observer` looks at a swarm without loading a model and `status` shows it, `plan_table` shows a
dry run, `chat` with `chat_screen` and `chat_commands` is the conversation, `doctor` finds what is wrong.
"""
