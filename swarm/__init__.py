"""wanswarm: one language model, many machines, one ring."""

__version__ = "0.1.0"
