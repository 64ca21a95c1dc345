"""Tokenizers without a trained vocabulary."""

from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

ROWS = [
    [UNK, 0.0, "UNKNOWN"],
    *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD)),
    *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)),
    *([chr(code), -8.0, "NORMAL"] for code in range(32, 92)),
]


def byte_tokenizer() -> Tokenizer:
    """Return 320 rows: control tokens, bytes, and ASCII from the space to the capitals."""
    return Tokenizer.from_rows(ROWS)
