"""The largest text that fits a number of tokens."""

from __future__ import annotations

from collections.abc import Callable


def token_counter(count_tokens: Callable[[str], int] | None) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text with bos. Without a tokenizer, three characters count as a token."""
    return (lambda text: count_tokens(text) + 1) if count_tokens else (lambda text: -(-len(text) // 3) + 1)


def largest_size(tokens: Callable[[int], int], limit: int, least: int = 1, most: int | None = None) -> int | None:
    """Return a size whose text has at most `limit` tokens, such that a text of a larger size would, or may, have more.

    Args:
        tokens: maps a size to the number of tokens of its text, which grows almost linearly.
        limit: largest number of tokens.
        least: smallest size.
        most: largest size; None: no limit.

    Returns:
        The size, or None if the smallest one has more tokens.
    """
    low, used, high = least, tokens(least), None if most is None else most + 1
    if used > limit:
        return None
    # The tokens of a unit of the text, so far, tell which size to try next.
    step = 64
    while high is None or high - low > 1:
        size = low + step if high is None else min(low + step, high - 1)
        found = tokens(size)
        per_unit = max((found - used) / (size - low), 1e-3)
        if found <= limit:
            low, used = size, found
        else:
            high = size
        remaining = (limit - used) / per_unit
        if remaining < 1 and high is not None:
            break
        # The first units may have unusually few tokens, which would make the next size much too large.
        step = min(max(1, int(remaining)), 4 * low + 64)
        if found > limit:
            step = min(step, max(1, (high - low) // 2))
    return low
