"""Draw `speed.json` and `caching.json`.

python experiments/serving/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
BLUE, ORANGE = "#0072B2", "#D55E00"


def main() -> None:
    """Write a plot beside the figures."""
    speed, caching = (json.loads((FOLDER / name).read_text()) for name in ("speed.json", "caching.json"))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(2, 1, 1, 2))
    rates = speed["tokens_per_second"]
    bars(panels[0], {"1 row": rates["decode 1"], "16 rows": rates["decode 16"]}, ("ours", "llama.cpp"))
    panels[0].set(title="decoding", ylabel="tokens/s")
    bars(panels[1], {"512 tokens": rates["prefill"]}, ("ours", "llama.cpp"))
    panels[1].set(title="prefill", ylabel="tokens/s")
    bars(panels[2], {"second turn": caching["seconds_to_first_token"]}, ("cold", "cached"))
    panels[2].set(title="prefix cache", ylabel="seconds to the first token")
    bars(panels[3], caching["tokens_per_second"], ("plain", "drafts"))
    panels[3].set(title="drafts, 1 row", ylabel="tokens/s")
    figure.savefig(FOLDER / "plot.png", dpi=120)


def bars(axes: Axes, groups: dict, names: tuple[str, str]) -> None:
    """Draw the medians of two measurements side by side, with lines from the least to the most."""
    for place, (name, colour) in enumerate(zip(names, (BLUE, ORANGE), strict=True)):
        for number, group in enumerate(groups.values()):
            x = number + 0.38 * (place - 0.5)
            if name not in group:
                axes.text(x, 0, "aborts", rotation=90, ha="center", va="bottom", fontsize=8, color=colour)
                continue
            row = group[name]
            spread = [[row["median"] - row["least"]], [row["most"] - row["median"]]]
            axes.bar(x, row["median"], 0.36, color=colour, yerr=spread, capsize=3, label=None if number else name)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.margins(y=0.2)


if __name__ == "__main__":
    main()
