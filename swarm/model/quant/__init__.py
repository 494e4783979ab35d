"""Matrices that stay as they are stored, and products with them.

The face is `matrix.PackedMatrix`; `formats` names what can be held, `modules` puts it where a layer was, `native` finds
the compiled kernels.
"""
