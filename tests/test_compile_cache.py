"""Compiled programs of the `plamo2` command: kept, bounded, given up where they cannot be kept, and never wrong."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax.cli import compile_cache
from plamo2_jax.cli.main import main

VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
GOLDEN = Path(__file__).parent / "golden" / "window"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's cache folder, seen from a process that has not imported jax and sets no variables of jax."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plamo2" / "compiled"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What `enable` and `disable` set is undone."""
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_programs_go_to_the_users_cache_folder(home):
    compile_cache.enable()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == home
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0
    assert float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]) > 0


def test_a_relative_xdg_cache_home_is_ignored(home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    compile_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / ".cache" / "plamo2"))


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_a_folder_that_the_user_chose_stays(home, monkeypatch, value):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    compile_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == value
    assert not home.exists()


def test_a_program_that_imported_jax_keeps_its_own_settings(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    compile_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_where_no_folder_can_be_made_nothing_is_kept(home, tmp_path):
    (tmp_path / "cache").write_text("a file in the way", encoding="utf-8")
    compile_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_folder_that_cannot_be_written_is_not_used(home, monkeypatch):
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    compile_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_kinds_of_cpu_do_not_share_programs(monkeypatch):
    names = []
    for text in (
        "model\t\t: 1\nflags\t\t: fpu avx\ncpu MHz\t\t: 2\n\nprocessor\t: 1\n",
        "model\t\t: 1\nflags\t\t: fpu\n",
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text, **_: text)
        names.append(compile_cache._cpu())
    # The clock is no kind of CPU.
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "model\t\t: 1\nflags\t\t: fpu avx\ncpu MHz\t\t: 3\n")
    assert compile_cache._cpu() == names[0] != names[1]


@pytest.mark.parametrize(
    ("argv", "disabled"),
    [
        (["--no-cache", "data", "inspect", "nowhere"], True),
        (["data", "inspect", "nowhere", "--no-cache"], True),
        (["data", "--no-cache", "inspect", "nowhere"], True),
        (["data", "inspect", "nowhere"], False),
        (["launch", "local", "nowhere.py", "--", "--no-cache"], False),
    ],
)
def test_the_option_stands_before_or_after_the_verb(argv, disabled, monkeypatch, capsys):
    before = jax.config.jax_enable_compilation_cache
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE")
    try:
        assert main(argv) == 2
        assert "nowhere" in capsys.readouterr().err
        assert (os.environ.get("JAX_ENABLE_COMPILATION_CACHE") == "false") == disabled
        assert jax.config.jax_enable_compilation_cache == (before and not disabled)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def test_the_programs_used_longest_ago_are_removed(tmp_path):
    for number in range(5):
        path = tmp_path / f"kind{number % 2}" / f"jit_{number}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0" * 10)
        os.utime(path, (number, number))
    (tmp_path / "note.txt").write_bytes(b"0" * 1000)
    compile_cache.trim(tmp_path, 30)
    assert sorted(path.name for path in tmp_path.rglob("jit_*")) == ["jit_2-cache", "jit_3-cache", "jit_4-cache"]
    assert (tmp_path / "note.txt").exists()
    compile_cache.trim(tmp_path, 0)
    assert not list(tmp_path.rglob("jit_*"))


def plamo2(tmp_path, *arguments):
    """Logits of the golden model by the command, with a cache of its own that keeps everything; the programs it kept, and what it said."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    np.savez(tmp_path / "tokens.npz", tokens=np.arange(12).reshape(2, 6))
    output = tmp_path / "logits.npz"
    words = ["logits", str(GOLDEN), "--input", str(tmp_path / "tokens.npz"), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "plamo2_jax.cli.main", *arguments, *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(output)["logits"].tobytes(), sorted((tmp_path / "cache").rglob("*-cache")), done.stderr


def test_kept_programs_compute_the_same_bits_and_damaged_ones_are_compiled_again(tmp_path):
    first, kept, _ = plamo2(tmp_path)
    assert len(kept) > 2
    damaged = kept[:2]
    damaged[0].write_bytes(damaged[0].read_bytes()[:100])
    content = bytearray(damaged[1].read_bytes())
    content[len(content) // 2] ^= 1
    damaged[1].write_bytes(content)
    second, again, said = plamo2(tmp_path)
    assert again == kept
    assert said.count("Error reading persistent compilation cache entry") == 2
    without, _, said = plamo2(tmp_path, "--no-cache")
    assert "cache" not in said
    assert first == second == without
