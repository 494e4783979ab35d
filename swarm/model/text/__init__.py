"""What lies between text and token ids beside the tokenizer itself: chat templates and single tokens' spelling.

The face is `template.TemplateRenderer` (a template is a stranger's program and runs in a process of its own,
`template_child`) and `spelling`.
"""
