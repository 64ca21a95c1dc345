"""Damaged files, and the process that reads them."""
