"""HTTP: OpenAI's API, the dashboard, metrics.

The face is `gateway.gateway` over `backend.Backend`, the Protocol that says what it needs of a requester. A request's
way: `web` (who asks), `parse` and `plan` (what is asked), `admission` (who may run next), `completions`, `answer`,
`stream`. `compat` speaks Responses and the APIs of Ollama and
Anthropic (`voice`). The dashboard's way: `snapshot`, `state`,
`state_broadcaster`, `views`.
"""
