"""What a node computes; knows no network.

`load` builds a `block.Block` (a layer range as one callable: rows in, rows out) from a checkpoint of `files`: `prune`
cuts, `edges` says where rows enter and leave, `guard` looks whether the cut computes what the model does. `rows` is the
record that caches, stages and speculation share, `kvcache` its slots, `sampler` draws, `probe` measures. `quant`
computes with weights as they are stored, `linear` holds the layers that keep a state, `text` is chat
templates and vocabularies.
"""
