"""Checkers: programs that decide whether a text follows an instruction. Evaluation, preference data and synthetic data share them.

A checker has a name, parameters with allowed values, a function of the text, and wordings of the instruction in Japanese and English. Every
wording belongs to one side: training or test. So a model that was trained with checked instructions is not tested with the same sentences.

    from plamo2_jax import checkers

    checkers.check("characters", "猫です。", {"relation": "less than", "count": 100})        # True
    parameters = checkers.draw("bullets", "ja", seed=1)                                     # parameters for synthetic data
    text = checkers.instruction("bullets", parameters, "ja", "train", seed=1)               # the instruction in words

`CHECKERS` has all of them by name. `docs/checkers.md` shows them in a table.
"""

from plamo2_jax.checkers.checker import Checker, CheckerError, Parameter, Wordings
from plamo2_jax.checkers.registry import CHECKERS, check, draw, find, instruction, validate

__all__ = [
    "CHECKERS",
    "Checker",
    "CheckerError",
    "Parameter",
    "Wordings",
    "check",
    "draw",
    "find",
    "instruction",
    "validate",
]
