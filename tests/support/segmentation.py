"""A segmentation oracle that shares nothing with the package: no trie, no numpy, quadratic."""

from __future__ import annotations

UNKNOWN_COST = 10_000_000


def brute_force_ids(rows: list[list], text: str, allow_control: bool) -> list[int]:
    """Ids of the cheapest segmentation by trying every token at every position, the longest first."""
    usable = [kind == "NORMAL" or (allow_control and kind in ("CONTROL", "UNKNOWN")) for _, _, kind, *_ in rows]
    candidates = sorted((i for i in range(len(rows)) if usable[i]), key=lambda i: -len(rows[i][0]))
    byte_ids = {int(row[0][3:5], 16): i for i, row in enumerate(rows) if row[2] == "BYTE"}
    best: list[tuple[int, int]] = [(0, -1)] * (len(text) + 1)
    for start in reversed(range(len(text))):
        cost, choice = None, -1
        for i in candidates:
            token, score = rows[i][:2]
            if text.startswith(token, start):
                through = best[start + len(token)][0] - round(1e4 * score)
                if cost is None or through < cost:
                    cost, choice = through, i
        if cost is None or best[start + 1][0] + UNKNOWN_COST < cost:
            cost, choice = best[start + 1][0] + UNKNOWN_COST, -1
        best[start] = (cost, choice)
    ids, start = [], 0
    while start < len(text):
        choice = best[start][1]
        if choice >= 0:
            ids.append(choice)
            start += len(rows[choice][0])
        else:
            ids += [byte_ids[value] for value in text[start].encode()]
            start += 1
    return ids
