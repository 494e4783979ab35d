"""What a block on a GPU is computed by so that its rows do not depend on each other, by Triton: products
(quant/triton_dense.py), sums along a row, attention over slots.

No card has run any of it: it was interpreted on CPUs, and compiled for cards.
"""
