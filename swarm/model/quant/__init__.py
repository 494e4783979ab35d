"""Matrices that stay as they are stored, and products with them.

The face is `matrix.PackedMatrix`; `formats` names what can be held, `modules` puts it where a layer was, `native` finds
the compiled kernels. A matrix that several stored tensors make up has an `encoding`: `integers` (GPTQ, AWQ), `floats`
(FP8, FP4), `compressed` (compressed-tensors), `bitsandbytes`, `ggml`; `kquants` rounds to Q4_K.
"""
