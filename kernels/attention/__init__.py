"""Sliding-window and full attention that respects segments."""
