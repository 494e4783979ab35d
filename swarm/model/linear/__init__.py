"""Layers that keep a state instead of all keys: short convolutions, the gated delta rule, state spaces, lightning
attention. Their rows have slots as attention's have, so trees, commits and rejected rows cost them nothing either."""
