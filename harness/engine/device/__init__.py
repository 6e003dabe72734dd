"""Mechanism: the model, its KV pool and the choice of tokens, in torch. Knows no policy."""
