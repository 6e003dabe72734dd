"""Tokens under every strategy and way of decoding, beside those of transformers."""
