"""Functions compiled by numba: cached in the user's cache folder, and never beside their source."""

import importlib.util

import numba
import pytest

from plamo2_jax.user_cache import compile_function


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A function of a module in a folder that can be written."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "package" / "module.py"
    path.parent.mkdir()
    path.write_text("def double(x):\n    return x + x\n")
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.double


def indices(folder):
    """Return the names of numba's index files below a folder."""
    return [path.name for path in folder.rglob("*.nbi")]


def test_machine_code_goes_to_the_users_cache_folder(function, tmp_path):
    # Files that numba leaves in site-packages break a later `pip install --editable`.
    assert compile_function(function)(2) == 4
    assert len(indices(tmp_path / "cache" / "plamo2" / "numba")) == 1
    assert not indices(tmp_path / "package")
    assert numba.config.CACHE_DIR == ""


def test_a_folder_that_others_may_write_is_not_used(function, tmp_path):
    folder = tmp_path / "cache" / "plamo2" / "numba"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compile_function(function)(2) == 4
    assert not indices(tmp_path)
