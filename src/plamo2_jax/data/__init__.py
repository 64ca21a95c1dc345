"""Data, from raw text to packed batches: sources, cleaning, shards, mixing and packing."""
