"""The PLaMo tokenizer: tokenizer.jsonl, encoding, training a vocabulary."""
