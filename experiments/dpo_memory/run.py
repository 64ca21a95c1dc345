"""What a DPO step takes on a chip beside an SFT step of the same tokens, by the TPU compiler's account, at the size of plamo-2-1b.

python experiments/dpo_memory/run.py        # needs libtpu (make test-tpu installs it), no TPU; writes results.json and README.md
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path

from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.align.sft import Sft
from plamo2_jax.checkpoint import write_json
from plamo2_jax.config_file import load_config
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.steps import plan
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.config import RunConfig

HERE = Path(__file__).resolve().parent
BASE = HERE.parents[1] / "configs" / "pretrain_1b.py"
# As the results were compiled; a reference beside the policy would be gathered in float32 with zero1.
SETTINGS = {"mesh": MeshConfig(data=4), "accumulation": 32, "remat": "dots", "sharding": "fsdp_tensor"}


def programs(base: RunConfig) -> dict[str, RunConfig]:
    """SFT, and DPO without and with the reference beside the policy."""
    dpo = Dpo(pairs=PairsConfig(max_pairs=16), preference=PreferenceConfig(losses=("sigmoid",), weights=(1.0,)))
    tasks = {
        "SFT": Sft(z_loss=0.0),
        "DPO, reference precomputed": dataclasses.replace(dpo, reference_log_probs=Path("reference")),
        "DPO, reference beside": dpo,
    }
    return {
        name: dataclasses.replace(base, name=task.kind, task=task, init_from=Path("sft"))
        for name, task in tasks.items()
    }


def page(results: dict) -> str:
    """The README."""
    plans = results["plans"]
    rows, sft = [], plans["SFT"]
    for name, found in plans.items():
        parts = " | ".join(f"{found[kind] / 2**30:.2f}" for kind in ("arguments", "temporaries", "total"))
        ratio = found["total"] / sft["total"]
        rows.append(f"| {name} | {parts} | {ratio:.2f} | {found['seconds'] / sft['seconds']:.2f} |")
    return f"""# Memory of a DPO step

**Question.** Does a DPO step need more memory of a chip than a fine-tuning (SFT) step on as many tokens?

**Method.** The train step of {results["parameters"] / 1e9:.2f} billion parameters (the preset plamo-2-1b), {results["rows"]} rows of \
{results["length"]} tokens in {results["accumulation"]} micro-batches on {results["topology"]}, is compiled by libtpu \
{results["libtpu"]} with jax \
{results["jax"]} and not run ({results["date"]}). All other settings are those of `configs/pretrain_1b.py`, except the mesh, sharding \
and remat in \
`run.py`. Memory is in GiB of one chip at the peak. "arguments" are parameters, optimizer state, batch, and the reference if it runs \
beside the policy. \
A row holds up to 16 pairs. The last column compares predicted step times, as if everything overlapped.

| step | arguments | temporaries | total | total / SFT | time / SFT |
|---|---|---|---|---|---|
{chr(10).join(rows)}

`python experiments/dpo_memory/run.py` repeats the experiment.
"""


def main() -> None:
    """Compile and write."""
    import jax

    from plamo2_jax.plan.compiler import libtpu_version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--beside", action="store_true", help="also with the reference beside the policy")
    options = parser.parse_args()
    base = dataclasses.replace(load_config(BASE), **SETTINGS)
    plans = {}
    for name, config in programs(base).items():
        if "beside" in name and not options.beside:
            continue
        found = plan(Request(config, options.topology, "train", "pallas", 0, config.data.sequence_length))
        if not found.fits:
            raise SystemExit(f"{name}: {found.error or f'{found.hbm_needed - found.hbm_available} bytes too many'}")
        plans[name] = {
            "arguments": found.memory["argument_bytes"],
            "temporaries": found.memory["temporary_bytes"],
            "total": found.hbm_needed,
            "seconds": found.seconds,
            "available": found.hbm_available,
        }
        print(name, plans[name], flush=True)
    results = {
        "topology": options.topology,
        "rows": base.data.batch_size,
        "length": base.data.sequence_length,
        "accumulation": base.accumulation,
        "parameters": base.model.parameter_count(),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
        "plans": plans,
    }
    write_json(options.output / "results.json", results)
    (options.output / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
