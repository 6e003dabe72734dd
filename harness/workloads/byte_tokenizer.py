"""A tokenizer that needs no vocabulary file: one token a UTF-8 byte."""

from __future__ import annotations

from collections.abc import Iterable


class ByteTokenizer:
    """Token id = byte + `first_id`; stands in where a model brings no tokenizer."""

    def __init__(self, first_id: int = 0) -> None:
        self.first_id = first_id
        self.vocab_size = first_id + 256

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """One id a byte; there are no special tokens to add."""
        return [byte + self.first_id for byte in text.encode("utf-8", errors="surrogatepass")]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of `encode`; ids that are no byte are left out, broken UTF-8 is marked."""
        raw = (token - self.first_id for token in token_ids)
        return bytes(byte for byte in raw if 0 <= byte < 256).decode("utf-8", errors="replace")
