"""A train step on meshes of eight devices is the one on one device, and holds a part of it on each."""

import collections
import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.model.loss import largest_chunk
from plamo2_jax.model.plamo2 import init_params
from plamo2_jax.sharding.mesh import AXES, MeshConfig, make_mesh
from plamo2_jax.sharding.rules import batch_sharding, replicated, with_shardings
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.gather_once import GatherOnce
from plamo2_jax.train.optimizer import OptimizerConfig, make_optimizer
from plamo2_jax.train.pretraining import Pretrain, next_token
from plamo2_jax.train.state import TrainState, state_shardings
from plamo2_jax.train.step import make_step
from support.meshes import (
    BYTE_LENGTHS,
    LENGTH,
    ROWS,
    by_name,
    compile_on,
    described,
    loss_and_gradients,
    make_batch,
    make_model,
    relative,
    shardings_on,
)

# data, fsdp, sequence, tensor; strategy; positions a chunk of the loss. Each axis, each pair of axes, and each strategy.
MESHES = [
    ((1, 8, 1, 1), "fsdp", 8),
    ((1, 1, 1, 8), "fsdp_tensor", None),
    ((1, 2, 1, 4), "fsdp_tensor", 8),
    ((4, 1, 1, 2), "tensor", None),
    ((2, 2, 1, 2), "fsdp_tensor", 8),
]


def mesh_id(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("shape", "strategy", "chunk"), MESHES, ids=mesh_id)
def test_loss_and_gradients_are_those_of_one_device(params, one_device, shape, strategy, chunk):
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, shape, strict=True))))
    compiled = compile_on(mesh, loss_and_gradients(make_model(mesh), chunk), strategy)
    places = shardings_on(mesh, strategy)
    held = jax.device_put(params, places)
    loss, grads = compiled(held, jax.device_put(make_batch(), batch_sharding(mesh, (ROWS, LENGTH))))
    assert float(loss) == pytest.approx(float(one_device[0]), rel=1e-6)
    assert relative(grads, one_device[1]) < 1e-5
    # Measured, not declared: the bytes that each device holds of the parameters and of their gradients.
    for path, place in by_name(places).items():
        leaf, grad = by_name(held)[path], by_name(grads)[path]
        wanted = math.prod(place.shard_shape(leaf.shape))
        assert {shard.data.size for array in (leaf, grad) for shard in array.addressable_shards} == {wanted}, path


@pytest.fixture(scope="module")
def stepper():
    """A function `(mesh) -> (step, shapes, shardings)` of a compiled train step of two micro-batches."""

    def build(mesh, sharding="fsdp_tensor"):
        model = make_model(mesh)
        logical_axes, shapes = described()
        optimizer = make_optimizer(OptimizerConfig(), lambda step: 1e-3, logical_axes)
        shapes = jax.eval_shape(lambda params: TrainState.create(params, optimizer, 0), shapes)
        shardings = state_shardings(shapes, optimizer, shardings_on(mesh))
        rows = batch_sharding(mesh, (ROWS, LENGTH), accumulation=2)
        batch = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) for n, a in make_batch().items()}
        gather_once = None
        if sharding != "fsdp_tensor":
            gather_once = GatherOnce(mesh, shardings.params, logical_axes, jnp.float32, sharding == "zero2")
        loss_fn = next_token(model, BYTE_LENGTHS)
        step = jax.jit(
            make_step(loss_fn, optimizer, lambda step: 1e-3, 2, shardings.params, gather_once=gather_once),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        )
        step = step.lower(with_shardings(shapes, shardings), batch).compile()
        create = jax.jit(lambda params: TrainState.create(params, optimizer, 0), out_shardings=shardings)
        return step, create, shardings, rows

    return build


@pytest.fixture(scope="module")
def sharded_step(stepper, cube):
    return stepper(cube)


@pytest.fixture(scope="module")
def single_update(params, stepper):
    """State and metrics after an update on one device."""
    return update(params, *stepper(make_mesh(MeshConfig(), jax.devices()[:1])))


def update(params, step, create, shardings, rows):
    state, metrics = step(create(jax.device_put(params, shardings.params)), jax.device_put(make_batch(), rows))
    return state, jax.device_get(metrics)


def test_an_update_is_that_of_one_device(params, sharded_step, single_update):
    assert_same_update(update(params, *sharded_step), single_update)


@pytest.mark.parametrize(("sharding", "in_loop"), [("zero1", set()), ("zero2", {"reduce-scatter", "all-reduce"})])
def test_parameters_gathered_once_make_the_same_update(params, stepper, single_update, sharding, in_loop):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    gathered = stepper(mesh, sharding)
    assert_same_update(update(params, *gathered), single_update)
    # Collectives in the loop over micro-batches.
    text = gathered[0].as_text()
    in_loops = [line for line in text.splitlines() if "/while/body/" in line]
    assert len(in_loops) > 100
    kinds = re.findall(r" (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(", "\n".join(in_loops))
    assert set(kinds) == in_loop


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
def test_a_run_gathers_matrices_in_the_dtype_of_its_activations(sharding):
    config = RunConfig(
        name="run",
        model=make_model().config,
        tokenizer=Path("tokenizer"),
        data=DataConfig((MixtureItem(Path("data")),), sequence_length=LENGTH, batch_size=ROWS),
        steps=10,
        task=Pretrain(),
        sharding=sharding,
        accumulation=2,
    )
    program = build_train_program(config, jax.devices()[:4])
    text = program.jit().lower(*program.arguments).as_text()
    gathered = re.findall(r"stablehlo.all_gather.*-> tensor<([0-9x]+)x(\w+)>", text)
    sizes = {"f32": 0, "bf16": 0}
    for shape, dtype in gathered:
        sizes[dtype] += math.prod(map(int, shape.split("x")))
    matrices = {path: leaf for path, leaf in by_name(program.state.params).items() if any(leaf.sharding.spec)}
    tables = sum(leaf.size for path, leaf in matrices.items() if path in ("embedding", "lm_head"))
    assert sizes == {"f32": tables, "bf16": sum(leaf.size for leaf in matrices.values()) - tables}
    scattered = re.findall(r"stablehlo.reduce_scatter.*?-> tensor<[0-9x]+x(\w+)>", text, re.DOTALL)
    assert scattered == ["f32" if sharding == "zero1" else "bf16"] * len(matrices)


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
def test_parameters_gathered_once_need_whole_rows(cube, stepper, sharding):
    with pytest.raises(
        ValueError, match=rf'sharding="{sharding}" is not allowed with mesh.tensor=2: each device computes whole rows'
    ):
        stepper(cube, sharding)


def assert_same_update(ours, theirs):
    (sharded, ours), (single, theirs) = ours, theirs
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    # Adam's first update is the gradient's sign, which where it is all but zero is the rounding's: moments tell more.
    assert relative(sharded.opt_state[1][0].mu, single.opt_state[1][0].mu) < 1e-5
    assert relative(sharded.params, single.params) < 1e-3


def test_a_donated_state_is_updated_in_place(sharded_step):
    step, *_ = sharded_step
    memory = step.memory_analysis()
    # All of the output but the metrics.
    assert memory.alias_size_in_bytes > 0.95 * memory.output_size_in_bytes


def test_parameters_and_optimizer_state_are_born_divided(cube, params, sharded_step):
    _, create, shardings, _ = sharded_step
    model = make_model(cube)
    initialise = jax.jit(lambda: init_params(model, jax.random.key(0)), out_shardings=shardings.params)
    initialise = initialise.lower().compile()
    # A device's share is a fourth here (fsdp × tensor), and so is what it needs on the way.
    bytes_of_all = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    memory = initialise.memory_analysis()
    assert memory.output_size_in_bytes < 0.3 * bytes_of_all
    assert memory.temp_size_in_bytes < 0.5 * bytes_of_all
    born = initialise()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(born), params)
    state = create(born)
    for path, leaf in by_name(state).items():
        if leaf.size > 1024:
            assert leaf.addressable_shards[0].data.size <= leaf.size / 4 or "k_proj" in path, path


# -- Memory ------------------------------------------------------------------------------------------------------------------------

DEEP_ROWS, DEEP_LENGTH, DEEP_VOCAB = 2, 256, 2048


@pytest.fixture(scope="module")
def deep():
    """A function `(chunk=None, **model) -> (compiled loss and gradients, their result)` of four periods on one device."""
    config = dataclasses.replace(make_model().config, num_hidden_layers=8, vocab_size=DEEP_VOCAB)
    params = jax.device_get(jax.jit(lambda: init_params(make_model(config=config), jax.random.key(0)))())
    batch = make_batch(DEEP_ROWS, DEEP_LENGTH, DEEP_VOCAB)
    lengths = jnp.ones(DEEP_VOCAB, jnp.int32)

    def run(chunk=None, **fields):
        function = loss_and_gradients(make_model(config=config, **fields), chunk, lengths)
        compiled = jax.jit(function).lower(params, batch).compile()
        return compiled, jax.device_get(compiled(params, batch))

    return run


@pytest.fixture(scope="module")
def keeps_all(deep):
    """Nothing recomputed, logits whole."""
    return deep()


def assert_same(ours, theirs):
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-6)
    assert relative(ours[1], theirs[1]) < 1e-5


def temporary(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def test_chunks_of_the_loss_change_nothing_and_never_hold_the_logits(deep, keeps_all):
    compiled, result = deep(chunk=32)
    assert_same(result, keeps_all[1])
    # Little less: with whole logits too, the most memory is in use in the layers.
    assert temporary(compiled) < temporary(keeps_all[0])
    assert f"f32[{DEEP_ROWS},{DEEP_LENGTH},{DEEP_VOCAB}]" in keeps_all[0].as_text()
    assert f"f32[{DEEP_ROWS},{DEEP_LENGTH},{DEEP_VOCAB}]" not in compiled.as_text()


def test_recomputing_changes_nothing_and_keeps_less(deep, keeps_all):
    kept = {"none": temporary(keeps_all[0])}
    policies = ("dots", "dots_except_up", "dots_except_gate_up", "outputs", "block")
    for remat in (*policies, "offload"):
        compiled, result = deep(remat=remat)
        assert_same(result, keeps_all[1])
        kept[remat] = temporary(compiled)
    sizes = [kept[remat] for remat in ("none", *policies)]
    assert sizes == sorted(sizes, reverse=True)
    assert kept["block"] < kept["dots_except_gate_up"] < kept["dots"] < kept["none"]


def test_policies_by_name_recompute_the_products_that_they_do_not_save():
    def products(remat):
        traced = jax.make_jaxpr(loss_and_gradients(make_model(remat=remat)))(described()[1], make_batch())
        return collections.Counter(re.findall(r"name\[name=(\w+)\]", str(traced)))

    once = products("none")
    mixers = {"in_proj", "b_proj", "c_proj", "dt_down", "q_proj", "k_proj", "v_proj"}
    recomputed = {
        "dots_except_up": {"up"},
        "dots_except_gate_up": {"gate", "up"},
        "outputs": {"gate", "up", *mixers},
        "block": {"gate", "up", *mixers, "out_proj", "o_proj", "down", "attention"},
    }
    for remat, names in recomputed.items():
        assert {name for name, n in products(remat).items() if n > once[name]} == {"period_input", *names}, remat


def test_offloading_puts_the_inputs_of_periods_into_host_memory():
    """In what a TPU's compiler is handed: on CPU the two memories are one."""
    for remat, moves in (("block", False), ("offload", True)):
        traced = jax.jit(loss_and_gradients(make_model(remat=remat))).trace(described()[1], make_batch())
        assert ("pinned_host" in traced.lower(lowering_platforms=("tpu",)).as_text()) == moves


def test_a_chunk_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"loss_chunk=5 is not allowed: it must divide the 32 positions of a row"):
        jax.eval_shape(loss_and_gradients(make_model(), chunk=5), described()[1], make_batch())


@pytest.mark.parametrize(("length", "limit", "chunk"), [(32, 12, 8), (12, 6, 6), (12, 5, 4), (12, 1, 2)])
def test_the_default_chunk_is_divided_over_the_sequence_axis(length, limit, chunk):
    model = make_model(make_mesh(MeshConfig(data=4, fsdp=1, sequence=2)))
    assert largest_chunk(model, length, limit) == chunk
