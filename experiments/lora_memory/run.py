"""HBM of a LoRA step at the size of plamo-2-8b by the TPU compiler's account, beside a step that forms W + s · A B.

python experiments/lora_memory/run.py        # needs libtpu (make test-tpu installs it), no TPU; writes results.json
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import importlib.metadata
import json
import os
from pathlib import Path

import jax
from live import Live, peak_arrays, total

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.lora import BASE
from plamo2_jax.align.sft import Sft
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.plan.compiler import ENVIRONMENT, first_line, libtpu_version, topology_devices
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.memory import chip_bytes, parse_overflow
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig

os.environ.update(ENVIRONMENT)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_compilation_cache", False)

HERE = Path(__file__).resolve().parent
TOPOLOGY, LENGTH = "v5e:2x4", 4096
KERNELS = {"implementation": "pallas_tpu", "attention_implementation": "splash"}


class MergedSft(Sft):
    """Fine-tuning as it was before adapters were leaves: the loss of the sum of base and adapters."""

    def make_task(self, run, context):
        """Make the task."""
        task, adapters = super().make_task(run, context), Adapters(run.model, self.lora)
        inner = dataclasses.replace(self, lora=None)
        whole = super(MergedSft, inner).make_task(run, context)

        def loss_fn(params, batch, rng, frozen):
            return whole.loss_fn(adapters.merge(frozen[BASE], params), batch, rng, frozen)

        return dataclasses.replace(task, loss_fn=loss_fn)


def run_config(kind: type[Sft], base_dtype: str, mesh: MeshConfig, rows: int) -> RunConfig:
    """Return the run: rank 16 on all linear layers, remat of whole periods."""
    return RunConfig(
        name="lora",
        model=preset("plamo-2-8b"),
        tokenizer=Path("tokenizer"),
        init_from=Path("base"),
        data=DataConfig((MixtureItem(Path("data")),), sequence_length=LENGTH, batch_size=rows),
        steps=10,
        task=kind(z_loss=0.0, lora=LoraConfig(rank=16, base_dtype=base_dtype)),
        mesh=mesh,
        sharding="fsdp_tensor",
        remat="block",
        loss_chunk=512,
    )


def measure(config: RunConfig, dump: Path | None = None) -> dict:
    """Compile one step and return its bytes on a chip."""
    program = build_train_program(config, topology_devices(TOPOLOGY), implementations=KERNELS)
    lowered = program.jit().lower(*program.arguments)
    kinds = {
        "base": chip_bytes(program.task.frozen),
        "adapters": chip_bytes(program.state.params),
        "optimizer": chip_bytes(program.state.opt_state),
        "batch": chip_bytes(program.batch),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        overflow = parse_overflow(str(error))
        if overflow is None:
            raise
        if dump:
            dump.write_text(str(error))
        return {"kinds": kinds, "fits": False, "total": overflow.needed, "error": first_line(error)[:200]}
    stats = compiled.memory_analysis()
    if dump:
        dump.write_text(compiled.as_text())
    arrays = peak_arrays(parse_module(compiled.as_text()))
    alike = collections.Counter(
        (array.shape.partition("{")[0].lstrip("("), array.bytes, named(array)) for array in arrays
    )
    return {
        "kinds": kinds,
        "fits": True,
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "total": stats.argument_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
        "at_peak": [
            {"count": count, "shape": shape, "bytes": size, "source": source}
            for (shape, size, source), count in sorted(alike.items(), key=lambda item: -item[0][1] * item[1])
            if count * size >= 1 << 20
        ],
        "at_peak_bytes": total(arrays),
    }


def named(array: Live) -> str:
    """Return where an array comes from."""
    return array.source.rsplit("closed_call/", 1)[-1] or array.op


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one of the programs")
    parser.add_argument("--dump", type=Path, help="folder for the compiled programs' text")
    options = parser.parse_args()
    if options.dump:
        options.dump.mkdir(parents=True, exist_ok=True)
    fsdp, tensor = MeshConfig(fsdp=8), MeshConfig(fsdp=1, tensor=8)
    programs = {
        "leaf, bfloat16 base, tensor=8, 1 row": run_config(Sft, "bfloat16", tensor, 1),
        "sum, bfloat16 base, tensor=8, 1 row": run_config(MergedSft, "bfloat16", tensor, 1),
        "sum, float32 base, tensor=8, 1 row": run_config(MergedSft, "float32", tensor, 1),
        "leaf, bfloat16 base, tensor=8, 8 rows": run_config(Sft, "bfloat16", tensor, 8),
        "leaf, bfloat16 base, fsdp=8, 8 rows": run_config(Sft, "bfloat16", fsdp, 8),
    }
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"programs": {}}
    for name, config in programs.items():
        if options.only in (None, name):
            dump = options.dump and options.dump / f"{name.replace(' ', '_')}.txt"
            results["programs"][name] = measure(config, dump)
            print(name, json.dumps(results["programs"][name], indent=1), flush=True)
            results |= {
                "topology": TOPOLOGY,
                "length": LENGTH,
                "parameters": config.model.parameter_count(),
                "adapter_parameters": sum(
                    leaf.size for leaf in jax.tree.leaves(Adapters(config.model, config.task.lora).abstract)
                ),
                "libtpu": libtpu_version(),
                "jax": importlib.metadata.version("jax"),
                "date": datetime.date.today().isoformat(),
            }
            path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
