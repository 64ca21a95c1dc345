"""Merging models of one shape into one."""
