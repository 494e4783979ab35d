"""Matrices that stay as they are stored, and products with them.

The face is `matrix.PackedMatrix`; `formats` names what can be held, `modules` puts it where a layer was, `native` finds
the compiled kernels. Weights that several stored tensors make up are an `encoding.Encoding` each: `schemes` finds them
by a checkpoint's `quantization_config` (`integers`, `floats`, `compressed`, `bitsandbytes`, `ggml`); `requantize` writes
smaller models and `quality` compares them.
"""
