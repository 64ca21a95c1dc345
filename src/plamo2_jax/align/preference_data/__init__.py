"""Preference data: answers of a model, scored by rules and a judge, and pairs made of them."""
