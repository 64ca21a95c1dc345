"""Settings every test shares. Set before jax is imported anywhere."""

import os
import signal

from support.xla import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=8)

# A shell's background jobs ignore Ctrl-C, and so would all processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

from support import shapes, shared_programs

shapes.install()

# Seeded and without a deadline: the first example of a shape pays for its compilation.
hypothesis.settings.register_profile("plamo2", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("plamo2")


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Programs of one kind, in this process and in those it starts, are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        # The processes of pytest-xdist have a folder each in the session's folder.
        base = tmp_path_factory.getbasetemp()
        folder = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session", autouse=True)
def share_programs():
    """Build the programs of equal runs in this process once."""
    with pytest.MonkeyPatch.context() as patch:
        shared_programs.install(patch)
        yield


@pytest.fixture
def unchecked_shapes():
    """Turn the checks of annotations off, for a test of what a function itself says of a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator seeded alike for every test."""
    return np.random.default_rng(0)


# The longest of the slow files, by CPU time.
_LONGEST = ("test_readme.py", "test_fuzz.py", "test_processes.py", "test_pipeline_kill.py", "test_packaging.py")
# Folders whose files take the longest.
_LONG_FOLDERS = ("train", "sharding", "surgery", "model", "pipeline", "align", "engine")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Skip a test that needs the C++ kernels on a machine without a compiler. Without them, the program uses XLA."""
    outcome = yield
    if outcome.excinfo is not None and "there is no C++ compiler" in str(outcome.excinfo[1]):
        outcome.force_exception(pytest.skip.Exception("there is no C++ compiler"))


def pytest_collection_modifyitems(items):
    """Start the slow files first, the longest before the others, and then the folders of long files.

    `make test` gives each file to one of two processes. A slow file that starts last keeps one of them busy while the other waits.
    """
    places = {name: number for number, name in enumerate(_LONGEST)}

    def place(item):
        is_fast = item.get_closest_marker("slow") is None
        return is_fast, places.get(item.path.name, len(places)), item.path.parent.name not in _LONG_FOLDERS

    items.sort(key=place)
