"""Every implementation of attention against a dense softmax in float64, gradients included; what each refuses; how each is lowered."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import PartitionSpec

from plamo2_kernels.attention import attention

B, T, H, G, P = 2, 200, 4, 2, 128
SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [90, 1, 80, 29]), np.repeat([0, 1, 0, 2, 0], [3, 62, 30, 100, 5])]).astype(
    np.int32
)


def dense(q, k, v, dy, segment_ids, window):
    """Output and gradients of the definition, in float64."""
    q, k, v, dy = (np.asarray(a, np.float64).swapaxes(1, 2) for a in (q, k, v, dy))
    k, v = (a.repeat(H // G, axis=1) for a in (k, v))
    distance = np.arange(T)[:, None] - np.arange(T)
    seen = (distance >= 0) & (distance <= (T if window is None else window))
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
    scores = np.where(seen, q @ k.swapaxes(2, 3) * P**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = dy @ v.swapaxes(2, 3)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * P**-0.5

    def grouped(a):
        return a.reshape(B, G, H // G, T, P).sum(2)

    out = weights @ v, dscores @ k, grouped(dscores.swapaxes(2, 3) @ q), grouped(weights.swapaxes(2, 3) @ dy)
    return [a.swapaxes(1, 2) for a in out]


def inputs(rng, dtype=np.float32):
    return [jnp.asarray(rng.normal(size=(B, T, heads, P)), dtype) for heads in (H, G, G, H)]


def compute(q, k, v, dy, **settings):
    @jax.jit
    def step(q, k, v, dy):
        y, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, **settings), q, k, v)
        return y, *vjp(dy)

    return step(q, k, v, dy)


def structs(t, h=32, g=4, p=128, dtype=jnp.bfloat16):
    shapes = [((1, t, heads, p), dtype) for heads in (h, g, g)] + [((1, t), jnp.int32), ((1, t, h, p), dtype)]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def gradient_step(implementation, window, segmented=True):
    def step(q, k, v, segment_ids, dy):
        def forward(q, k, v):
            ids = segment_ids if segmented else None
            return attention(q, k, v, segment_ids=ids, window=window, implementation=implementation)

        y, vjp = jax.vjp(forward, q, k, v)
        return y, vjp(dy)

    return jax.jit(step)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """cuDNN's part played by XLA: all but the kernel itself, which needs a GPU. It notes the shapes of the masks it is given."""
    real, masks = jax.nn.dot_product_attention, []

    def play(q, k, v, mask=None, *, implementation, **settings):
        assert implementation == "cudnn"
        assert q.dtype == k.dtype == v.dtype == jnp.bfloat16
        if mask is not None:
            masks.append(mask.shape)
            assert mask.shape[2] % 2 == mask.shape[3] % 2 == 0
        return real(q, k, v, mask=mask, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", play)
    return masks


@pytest.mark.parametrize("segment_ids", [None, SEGMENTS], ids=["one document", "segments"])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(
    "settings",
    [{"implementation": "xla", "block_size": 64}, {"implementation": "splash", "block_size": 128, "interpret": True}],
    ids=["xla", "splash"],
)
def test_values_and_gradients_are_those_of_the_dense_softmax(rng, settings, window, segment_ids):
    args = inputs(rng)
    found = compute(*args, segment_ids=segment_ids, window=window, **settings)
    for a, expected in zip(found, dense(*args, segment_ids, window), strict=True):
        np.testing.assert_allclose(a, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("segment_ids", [None, SEGMENTS], ids=["one document", "segments"])
@pytest.mark.parametrize("window", [None, 71])
def test_what_cudnn_is_asked_for_is_the_dense_softmax(rng, cudnn_by_xla, window, segment_ids):
    args = inputs(rng, jnp.bfloat16)
    found = compute(*args, segment_ids=segment_ids, window=window, block_size=64, implementation="cudnn")
    for a, expected in zip(found, dense(*args, segment_ids, window), strict=True):
        error = np.linalg.norm(np.asarray(a, np.float64) - expected) / np.linalg.norm(expected)
        assert error < 0.01
    # Masks of blocks, or none at all.
    assert {shape[:3] for shape in cudnn_by_xla} == (set() if segment_ids is None else {(B, 1, 64)})


def test_splash_in_bfloat16_is_near(rng):
    args = inputs(rng, jnp.bfloat16)
    found = compute(*args, segment_ids=SEGMENTS, window=70, implementation="splash", interpret=True)
    for a, expected in zip(found, dense(*args, SEGMENTS, 70), strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(a, np.float64) - expected) / np.linalg.norm(expected) < 0.01


def test_splash_inside_shard_map_over_rows_and_heads(rng):
    args = inputs(rng)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    heads, rows = PartitionSpec("data", None, "model"), PartitionSpec("data")
    settings = {"window": 70, "implementation": "splash", "block_size": 128, "interpret": True}

    # The interpreter's loop does not carry the types of shard_map.
    @jax.shard_map(mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    def sharded(q, k, v, segment_ids):
        return attention(q, k, v, segment_ids=segment_ids, **settings)

    @jax.jit
    def step(q, k, v, dy):
        y, vjp = jax.vjp(lambda q, k, v: sharded(q, k, v, SEGMENTS), q, k, v)
        return y, *vjp(dy)

    for a, expected in zip(step(*args), dense(*args, SEGMENTS, 70), strict=True):
        np.testing.assert_allclose(a, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("window", [None, 2048])
def test_splash_lowers_for_tpu(window):
    exported = jax.export.export(gradient_step("splash", window), platforms=["tpu"])(*structs(4096))
    assert exported.mlir_module().count("tpu_custom_call") >= 3  # forward, gradient of q, of k and v


@pytest.mark.parametrize("segmented", [True, False])
def test_cudnn_lowers_for_cuda_without_a_mask_of_the_whole_row(monkeypatch, segmented):
    # jax asks the CUDA plugin, which a machine without a GPU lacks, for cuDNN's version.
    plugin = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", plugin)
    safe = [
        jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmha{name}")
        for name in ("Softmax", "SoftmaxBackward", "ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward")
    ]
    step = gradient_step("cudnn", 2048, segmented)
    text = jax.export.export(step, platforms=["cuda"], disabled_checks=safe)(*structs(8192)).mlir_module()
    assert "__cudnn$fmha" in text
    assert "Backward" in text
    assert "8192x8192" not in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"implementation": "flash"}, "implementation='flash' must be one of auto, xla, splash, cudnn"),
        ({"implementation": "splash", "p": 100}, "'splash' cannot run: its heads must be a multiple of 16, not 100"),
        ({"implementation": "splash", "dtype": jnp.float16}, "'splash' cannot run: .* not float16"),
        (
            {"implementation": "splash", "block_size": 100},
            "'splash' cannot run: block_size=100 must be a multiple of 128",
        ),
        ({"implementation": "cudnn"}, "'cudnn' cannot run: cuDNN takes bfloat16 or float16, not float32"),
        (
            {"implementation": "cudnn", "p": 100, "dtype": jnp.bfloat16},
            "'cudnn' cannot run: its heads must be a multiple of 8 up to 128, not 100",
        ),
        ({"implementation": "cudnn", "dtype": jnp.bfloat16}, "'cudnn' cannot run: cuDNN is not detected"),
        ({"window": -1}, "window=-1 must be None or at least 0"),
        ({"g": 3}, r"k has shape \(1, 16, 3, 128\); .* g dividing 4"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(settings, message):
    settings = dict(settings)
    shape = {name: settings.pop(name, default) for name, default in {"p": P, "g": G}.items()}
    dtype = settings.pop("dtype", jnp.float32)
    q, kv = (jnp.zeros((1, 16, heads, shape["p"]), dtype) for heads in (H, shape["g"]))
    with pytest.raises(ValueError, match=message):
        attention(q, kv, kv, **settings)


@pytest.mark.parametrize(
    ("platform", "devices", "dtype", "chosen"),
    [
        ("tpu", 1, jnp.float32, "splash.splash_attention"),
        ("tpu", 8, jnp.float32, "api.banded_attention"),
        ("tpu", 1, jnp.float16, "api.banded_attention"),
        ("gpu", 1, jnp.bfloat16, "cudnn.cudnn_attention"),
        ("gpu", 1, jnp.float32, "api.banded_attention"),
        ("cpu", 1, jnp.bfloat16, "api.banded_attention"),
    ],
)
def test_auto_chooses_by_the_platform_and_by_what_its_library_takes(monkeypatch, platform, devices, dtype, chosen):
    taken = []
    for name in ("splash.splash_attention", "cudnn.cudnn_attention", "api.banded_attention"):
        monkeypatch.setattr(
            f"plamo2_kernels.attention.{name}", lambda q, *args, name=name, **settings: taken.append(name) or q
        )
    client = types.SimpleNamespace(platform_version="cuda 12090" if platform == "gpu" else "")
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    q = jnp.zeros((1, 16, H, P), dtype)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(client=client)])
    attention(q, q, q)
    assert taken == [chosen]


def test_auto_takes_splash_on_each_device_of_a_shard_map(monkeypatch):
    taken = []

    def splash(q, *args, **settings):
        taken.append(q.shape)
        return q

    monkeypatch.setattr("plamo2_kernels.attention.splash.splash_attention", splash)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    spec = PartitionSpec("data", None, "model")
    q = jnp.zeros((2, 16, H, P))
    jax.shard_map(lambda q: attention(q, q, q), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(q)
    assert taken == [(1, 16, H // 2, P)]
