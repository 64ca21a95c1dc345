"""The C++ library: other targets of the compiler, its cache, and machines on which it cannot be made."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels import native
from plamo2_kernels.native import compiler, library
from plamo2_kernels.native.library_cache import find_or_make
from plamo2_kernels.quant import quantized_product

# GCC tunes sums for AMD in another way than for other CPUs.
TARGETS = {
    "avx2": ("-march=x86-64-v3",),
    "amd": ("-march=x86-64-v3", "-mtune=znver3"),
    "generic": ("-march=x86-64",),
}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 320)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(37, 320)), jnp.float32)
    whole = jnp.asarray(rng.integers(-128, 128, (37, 320)), jnp.int8)
    half = jnp.asarray(rng.integers(-8, 8, (37, 320)), jnp.int4)
    return x, weight, whole, half, jnp.ones((37, 1)), jnp.asarray(rng.uniform(1, 2, (37, 5)), jnp.float32)


def results(inputs, suffix=""):
    x, weight, whole, half, one, scales = inputs
    y, none = jax.ShapeDtypeStruct((5, 37), jnp.float32), jnp.zeros((0, 0), jnp.int8)
    parts = {"parts": np.int64(2)}
    return [
        *native.call("plamo2_integers" + suffix, [y, y], x, whole, one, none, whole[::-1], one, none, **parts),
        *native.call("plamo2_integers" + suffix, [y], x, half, scales, none, **parts),
        native.call("plamo2_float_outputs" + suffix, y, x, weight),
        native.call("plamo2_float_columns" + suffix, jax.ShapeDtypeStruct((1, *y.shape), y.dtype), x, weight.T[None])[
            0
        ],
    ]


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tmp_path_factory):
    """Return the suffix of the functions of a library for other instructions."""
    if os.uname().machine != "x86_64":
        pytest.skip("the targets are x86-64")
    library.require()
    library.register(TARGETS[request.param], "_" + request.param, tmp_path_factory.mktemp("libraries"))
    return "_" + request.param


def test_other_instructions_give_the_same_results(inputs, target):
    for ours, other in zip(results(inputs), results(inputs, target), strict=True):
        np.testing.assert_allclose(other, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_other_rows_do_not_change_a_row_with_other_instructions(target):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(33, 130)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(67, 130)), jnp.float32)

    def product(rows, outputs_first):
        if outputs_first:
            return native.call(
                "plamo2_float_outputs" + target, jax.ShapeDtypeStruct((rows, 67), x.dtype), x[:rows], weight
            )
        shape = jax.ShapeDtypeStruct((1, rows, 67), x.dtype)
        return native.call("plamo2_float_columns" + target, shape, x[:rows], weight.T[None])[0]

    # With outputs first, sums have one order for few rows, and another one for more than 6.
    for outputs_first, counts in ((True, (1, 2)), (True, (7, 8, 17, 33)), (False, (1, 2, 8, 33))):
        most = product(counts[-1], outputs_first)
        for rows in counts[:-1]:
            np.testing.assert_array_equal(product(rows, outputs_first), most[:rows], err_msg=f"{rows} {outputs_first}")


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (8, 3), (4, 2), (4, 6), (4, 46)])
def test_integers_with_other_instructions_are_exact(target, bits, groups):
    """Groups that vectors fill and groups that they do not, and one with an odd number of inputs."""
    rng = np.random.default_rng(0)
    k, limit = 138, 2 ** (bits - 1)
    values, points = rng.integers(-limit, limit, (37, k)), rng.integers(-limit, limit, (37, groups))
    # The largest of a row becomes 127 * 256, so each activation is exact.
    x = rng.integers(-127, 128, (9, k))
    x[:, 0] = 127
    scales = rng.uniform(0.5, 1.5, (37, groups)).astype(np.float32)
    dtype = jnp.int8 if bits == 8 else jnp.int4
    arrays = jnp.asarray(values, dtype), jnp.asarray(scales), jnp.asarray(points, jnp.int8)

    def product(rows):
        y = jax.ShapeDtypeStruct((rows, 37), jnp.float32)
        given = jnp.asarray(x[:rows], jnp.float32)
        return np.asarray(native.call("plamo2_integers" + target, [y], given, *arrays, parts=np.int64(2))[0])

    whole = (values.reshape(37, groups, -1) - points[..., None]) * scales[..., None].astype(np.float64)
    expected = x.astype(np.float64) @ whole.reshape(37, k).T
    y = product(9)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    for rows in (1, 3, 5):
        np.testing.assert_array_equal(product(rows), y[:rows])


def test_a_library_is_made_once_and_a_damaged_one_again(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_bytes(b"library")

    folder = tmp_path / "cache"
    first = find_or_make("key", make, folder)
    assert find_or_make("key", make, folder) == first
    assert len(made) == 1
    first.write_bytes(b"librar")
    assert find_or_make("key", make, folder).read_bytes() == b"library"
    assert len(made) == 2
    assert [path.name for path in folder.iterdir()] == [first.name]


def test_no_file_that_another_user_could_write_is_loaded(tmp_path):
    def make(path):
        path.write_bytes(b"ours")

    folder = tmp_path / "cache"
    ours = find_or_make("key", make, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    ours.chmod(0o666)
    again = find_or_make("key", make, folder)
    assert again.stat().st_mode & 0o777 == 0o600
    # A link may point anywhere.
    elsewhere = tmp_path / "elsewhere.so"
    again.rename(elsewhere)
    again.symlink_to(elsewhere)
    assert not find_or_make("key", make, folder).is_symlink()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="no other user may write it"):
        find_or_make("key", make, folder)


def test_a_key_covers_sources_flags_and_versions(monkeypatch, tmp_path):
    keys = {compiler.library_key(("-march=native",)), compiler.library_key(())}
    monkeypatch.setattr(compiler, "cpu_kind", lambda: "another")
    keys.add(compiler.library_key(()))
    (tmp_path / "one.cc").write_text("int one;")
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    keys.add(compiler.library_key(()))
    assert len(keys) == 4


def test_several_processes_may_make_it_at_once(tmp_path):
    script = "from plamo2_kernels.native import library; library.require(); print('made')"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def start(_):
        return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=200)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(start, range(2)))
    assert [run.stdout.strip() for run in done] == ["made"] * 2, done[0].stderr
    files = list((tmp_path / "plamo2" / "kernels").iterdir())
    assert files
    assert all(path.suffix == ".so" for path in files)


@pytest.fixture
def unloaded():
    library._failure.cache_clear()
    yield
    library._failure.cache_clear()


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("trouble", ["no compiler", "broken compiler", "no folder"])
def test_xla_computes_where_the_library_cannot_be_made(trouble, inputs, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if trouble == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif trouble == "broken compiler":
        monkeypatch.setenv("CXX", "false")
    else:
        (tmp_path / "plamo2").write_text("a file")
    x, _, whole, _, one, _ = inputs
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            y = quantized_product(x, whole, one, implementation="auto")
    np.testing.assert_array_equal(y, quantized_product(x, whole, one, implementation="xla"))
    assert len([record for record in caplog.records if "XLA computes instead" in record.message]) == 1
    with pytest.raises(ValueError, match='implementation="ffi" cannot run: '):
        quantized_product(x, whole, one, implementation="ffi")
