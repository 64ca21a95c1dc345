"""Checked arithmetic: a calculation, its steps, and its result.

The fields of a draft have `expression`, which is the calculation in Python's notation, and `answer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from plamo2_jax.synth.record import Draft, Kind, Seed
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe, question_draft

NAME = "arithmetic"
Calculation = tuple[str, list[str], str, str]
"""The calculation as it is shown, its steps, its result, and the expression."""

_ASK = {
    "ja": ("{}を計算してください。", "{}はいくつですか。", "次の計算をしてください: {}", "{}の答えを求めてください。"),
    "en": ("Calculate {}.", "What is {}?", "Work out {} step by step.", "Find the value of {}."),
}
_END = {"ja": "答え: {}", "en": "Answer: {}"}


def _between(random: np.random.Generator, least: int, most: int) -> int:
    return int(random.integers(least, most + 1))


def _number(random: np.random.Generator, digits: int) -> int:
    """Return a number with 1 to `digits` digits. All lengths are equally frequent."""
    length = _between(random, 1, digits)
    return _between(random, 10 ** (length - 1), 10**length - 1)


def _sum(random: np.random.Generator, language: str) -> Calculation:
    numbers = [_number(random, 6) for _ in range(_between(random, 2, 4))]
    total, shown, steps = numbers[0], str(numbers[0]), []
    for number in numbers[1:]:
        minus = number <= total and random.random() < 0.5
        result = total - number if minus else total + number
        steps.append(f"{total} {'-' if minus else '+'} {number} = {result}")
        shown += f" {'-' if minus else '+'} {number}"
        total = result
    return shown, steps, str(total), shown


def _product(random: np.random.Generator, language: str) -> Calculation:
    a, b = _between(random, 2, 9999), _between(random, 12, 999)
    digits = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"][::-1]
    steps = [f"{a} × {part} = {a * part}" for part in digits]
    if len(digits) > 1:
        steps.append(f"{' + '.join(str(a * part) for part in digits)} = {a * b}")
    return f"{a} × {b}", steps, str(a * b), f"{a} * {b}"


def _division(random: np.random.Generator, language: str) -> Calculation:
    divisor, quotient = _between(random, 2, 99), _between(random, 2, 999)
    rest = _between(random, 0, divisor - 1)
    number = divisor * quotient + rest
    steps = [f"{divisor} × {quotient} = {divisor * quotient}", f"{number} - {divisor * quotient} = {rest}"]
    words = {"ja": f"{quotient} 余り {rest}", "en": f"{quotient} remainder {rest}"}[language]
    return f"{number} ÷ {divisor}", steps, words if rest else str(quotient), f"divmod({number}, {divisor})"


def _mixed(random: np.random.Generator, language: str) -> Calculation:
    a, b, c, d = (_between(random, 2, high) for high in (200, 200, 50, 500))
    inner = a + b
    product = inner * c
    steps = [f"{a} + {b} = {inner}", f"{inner} × {c} = {product}"]
    minus = d <= product
    result = product - d if minus else product + d
    steps.append(f"{product} {'-' if minus else '+'} {d} = {result}")
    shown = f"({a} + {b}) × {c} {'-' if minus else '+'} {d}"
    return shown, steps, str(result), shown.replace("×", "*")


def _order(random: np.random.Generator, language: str) -> Calculation:
    a, b, c, d = _between(random, 1, 500), _between(random, 2, 60), _between(random, 2, 60), _between(random, 1, 500)
    product = b * c
    steps = [f"{b} × {c} = {product}", f"{a} + {product} = {a + product}"]
    steps.append(f"{a + product} + {d} = {a + product + d}")
    return f"{a} + {b} × {c} + {d}", steps, str(a + product + d), f"{a} + {b} * {c} + {d}"


def _fractions(random: np.random.Generator, language: str) -> Calculation:
    b, d = _between(random, 2, 20), _between(random, 2, 20)
    a, c = _between(random, 1, b - 1), _between(random, 1, d - 1)
    common = b * d // np.gcd(b, d)
    left, right = a * (common // b), c * (common // d)
    result = Fraction(left + right, int(common))
    words = str(result)
    steps = [f"{a}/{b} = {left}/{common}", f"{c}/{d} = {right}/{common}"]
    steps.append(f"{left}/{common} + {right}/{common} = {left + right}/{common}")
    if words != f"{left + right}/{common}":
        steps.append(f"{left + right}/{common} = {words}")
    return f"{a}/{b} + {c}/{d}", steps, words, f"Fraction({a}, {b}) + Fraction({c}, {d})"


def _decimals(random: np.random.Generator, language: str) -> Calculation:
    a, b = _between(random, 1, 99999), _between(random, 1, 99999)
    total = a + b
    shown = [f"{value // 100}.{value % 100:02}" for value in (a, b, total)]
    joined = {"ja": "小数点をそろえて 100 倍の整数で計算します。", "en": "Calculate with whole hundredths."}[language]
    steps = [joined, f"{a} + {b} = {total}", f"{shown[0]} + {shown[1]} = {shown[2]}"]
    return f"{shown[0]} + {shown[1]}", steps, shown[2], f"Decimal('{shown[0]}') + Decimal('{shown[1]}')"


_KINDS: tuple[Callable[[np.random.Generator, str], Calculation], ...] = (
    _sum, _product, _division, _mixed, _order, _fractions, _decimals,
)  # fmt: skip


def _make(language: str, kind: Kind, seed: Seed, random: np.random.Generator) -> list[Draft]:
    shown, steps, answer, expression = _KINDS[int(random.integers(len(_KINDS)))](random, language)
    wordings = _ASK[language]
    question = wordings[int(random.integers(len(wordings)))].format(shown)
    solution = "\n".join([*steps, _END[language].format(answer)])
    return [question_draft(kind, language, question, solution, {"answer": answer, "expression": expression})]


def recipe(name: str, language: str, kind: Kind) -> RuleRecipe:
    """Return the recipe of a language."""
    return RuleRecipe(
        name=name,
        version="1",
        language=language,
        kind=kind,
        source="none",
        description="calculations with whole numbers, fractions and decimals, with their steps",
        make=functools.partial(_make, language, kind),
    )
