"""PLaMo 2 (arXiv:2509.04897) in JAX: model, tokenizer, data, training, conversion and inference."""

__version__ = "0.1.0"
