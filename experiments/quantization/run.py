"""What each way of quantizing costs: held-out bits per byte, KL divergence, greedy agreement, bytes and tokens per second.

plamo2 pretrain experiments/quantization/wide.py                       # after make demo; about 30 minutes
plamo2 pretrain experiments/demo_gpu.py                                # for --scale gpu, in the place of wide.py
python experiments/quantization/run.py                                 # quantizes and measures; continues where it was stopped
python experiments/quantization/run.py --speed                         # tokens per second, on a machine that does nothing else
python experiments/quantization/run.py --chat tuned=runs/demo/tuned --only int8 'int4 g64, rtn'   # rules of post_training, too

Every cell (a model, a variant, a seed of the calibration rows) is one file in `--work`, so the script can run in pieces: `--minutes 20`
stops after the cell in which 20 minutes are over. `results.json`, `plot.png` and `README.md` are written from the cells that exist.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cells import gather, measure_cells  # noqa: E402
from decoding import measure_speed  # noqa: E402
from results_page import bars, page, plot  # noqa: E402
from scales import parse  # noqa: E402

from plamo2_jax.checkpoint import write_json  # noqa: E402


def named(text: str) -> tuple[str, Path]:
    """Split NAME=PATH; argparse reports text of another form."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=PATH, such as demo=runs/demo")
    return name, Path(path)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=named, nargs="*", help="NAME=PATH of base models (default: demo and wide in runs/)"
    )
    parser.add_argument("--chat", type=named, nargs="*", default=[], help="NAME=PATH of chat models, measured by rules")
    parser.add_argument(
        "--instructions",
        type=Path,
        default=Path("runs/demo"),
        help="folder with instructions/heldout.jsonl, for --chat",
    )
    parser.add_argument("--questions", type=int, default=192, help="held-out requests, for --chat")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/demo/data"), help="folder with LANGUAGE/train and LANGUAGE/heldout"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=64, help="calibration rows of 512 tokens")
    parser.add_argument(
        "--batches", type=int, default=24, help="held-out batches of 4 rows of 512 tokens, for each language"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after this time")
    parser.add_argument("--only", nargs="*", help="only variants with these names; * stands for any text")
    parser.add_argument("--speed", action="store_true", help="measure tokens per second instead")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each variant, for --speed")
    arguments, _ = parse(parser, "quantization", HERE)
    arguments.models, arguments.chat = dict(arguments.models), dict(arguments.chat)
    measure_speed(arguments) if arguments.speed else measure_cells(arguments)
    results = gather(arguments)
    write_json(arguments.output / "results.json", results)
    if results["models"]:
        plot(results, arguments.output / "plot.png")
        (arguments.output / "README.md").write_text(page(results), encoding="utf-8")
        for text, good in bars(results):
            print(f"{'reached' if good else 'NOT REACHED'}: {text}")


if __name__ == "__main__":
    main()
