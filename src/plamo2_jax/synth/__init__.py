"""Synthetic data: recipes, work units, verification, filters, and shards with provenance."""
