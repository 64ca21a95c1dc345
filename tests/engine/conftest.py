"""The tiny model that all tests of this folder use."""

from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]
