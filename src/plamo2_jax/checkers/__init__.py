"""Checkers: programs that decide whether a text follows an instruction. Evaluation, preference data and synthetic data share them."""
