"""What a receipt is made of: exact JSON, signed envelopes, statements, Merkle trees, the file.

`document.Document` is the file; `codec` reads and writes every statement from one declaration, which `json_schema`
prints.
"""
