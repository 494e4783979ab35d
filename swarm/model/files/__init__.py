"""Checkpoints: where a model's files are, what is in them, and what it is by content.

The face is `checkpoint.Checkpoint` (weights on disk, one tensor at a time) and `manifest.Manifest` (a digest for every
tensor). A reference becomes files in `store` (a `hub`, a `wheel`, a `local` folder or file, `blobs` of other nodes).
Which tensors make up which weight: `schemes`. Formats: `safetensors_file`, and `gguf_*` with headers, names, layouts,
configs and tokenizers.
"""
