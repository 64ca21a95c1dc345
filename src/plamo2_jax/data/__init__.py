"""From raw text to packed batches: sources, cleaning, shards, mixing, packing."""
