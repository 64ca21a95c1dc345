"""What a launch copies to the workers, and that it refuses a run whose data would not be there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from plamo2_jax.cli.launch import load_job
from plamo2_jax.launch.archive import archive
from plamo2_jax.launch.gcloud import Gcloud, script

ROOT = Path(__file__).parents[2]
WHERE = ("--accelerator", "v5p-8", "--project", "my-project", "--zone", "us-east5-a")
DATA = ("--on-workers", "runs/demo")


def git(*arguments):
    """Run git in the working directory; returns what it printed."""
    return subprocess.run(["git", *arguments], capture_output=True, check=True, text=True).stdout


def git_state(checkout):
    """Every file under .git with its bytes."""
    return {path: path.read_bytes() for path in sorted((checkout / ".git").rglob("*")) if path.is_file()}


def packed(checkout, tmp_path, *options):
    """The files that the printed script packs, by name, and the status of its packing."""
    job, _ = load_job(Path("configs/demo.py"), ("--output", "gs://bucket/runs"))
    chosen = Gcloud("v5p-8", project="my-project", zone="us-east5-a", on_workers=("runs/demo",), **dict(options))
    # The script up to the first call that would cost money, which here unpacks the archive instead.
    head, *_ = script(job, chosen).partition("\nstatus=1\n")
    out = tmp_path / "unpacked"
    out.mkdir()
    done = subprocess.run(
        ["bash", "-c", f'{head}\ntar -xzf "$folder/$archive" -C "$OUT"'],
        env=os.environ | {"OUT": str(out)},
        capture_output=True,
        text=True,
    )
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    return names, out, done


@pytest.fixture
def worked_in(checkout):
    """A checkout that was worked in, as the README has it: data and models beside tracked files, some of them changed or deleted."""
    for name, text in {
        "shards/news/train/shard-00000.arrayrecord": "confidential",
        "data/raw.txt": "confidential",
        "exported/model.safetensors": "weights",
        "clean.jsonl.gz": "confidential",
        "notes with\nnewline.txt": "untracked",
        "deleted.py": "x",
        "-C odd name": "tracked",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text, encoding="utf-8")
    (checkout / "link").symlink_to("data")
    git("add", "--", "deleted.py", "-C odd name", "link")
    (checkout / "deleted.py").unlink()
    with (checkout / "configs" / "demo.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed, not committed\n")
    return checkout


def test_tracked_files_are_packed_as_they_are_and_nothing_else(worked_in, tmp_path):
    before = git_state(worked_in)
    names, out, done = packed(worked_in, tmp_path)
    assert done.returncode == 0, done.stderr
    assert names == {".gitignore", "setup.cfg", "configs/demo.py", "-C odd name", "link"}
    assert (out / "configs/demo.py").read_text(encoding="utf-8").endswith("# changed, not committed\n")
    assert (out / "link").is_symlink()
    assert git_state(worked_in) == before
    listed = archive(worked_in, worked_in / "configs" / "demo.py")
    assert set(listed.files) == names
    assert sorted(listed.untracked) == [
        "clean.jsonl.gz",
        "data/raw.txt",
        "exported/model.safetensors",
        "notes with\nnewline.txt",
        "shards/news/train/shard-00000.arrayrecord",
    ]


@pytest.mark.parametrize("ignored", [False, True])
def test_an_untracked_config_file_is_packed(checkout, tmp_path, ignored):
    git("rm", "--quiet", "--cached", "configs/demo.py")
    if ignored:
        (checkout / ".gitignore").write_text("configs/\n", encoding="utf-8")
    names, _, done = packed(checkout, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "configs/demo.py" in names


def test_a_submodule_is_not_packed(checkout, tmp_path):
    inner = checkout / "vendored"
    git("init", "--quiet", str(inner))
    (inner / "big.bin").write_bytes(b"0" * 1000)
    git("-C", str(inner), "add", "big.bin")
    git("-C", str(inner), "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", "x")
    git("add", "vendored")
    names, _, done = packed(checkout, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith("vendored/") for name in names)


def test_the_dry_run_shows_size_largest_files_and_what_stays(worked_in, printed):
    (worked_in / "big.bin").write_bytes(b"\0" * 3_000_000)
    git("add", "big.bin")
    lines = printed("gcloud", *WHERE, *DATA).splitlines()
    head = [line for line in lines if line.startswith("# ")]
    assert any("6 files that git tracks, 3.00 MB before compression" in line for line in head)
    assert any(line.endswith("3.00 MB  big.bin") for line in head)
    (left,) = (line for line in head if line.startswith("# not copied"))
    assert "5 files" in left
    assert "exported/model.safetensors" in left
    assert r"'notes with\nnewline.txt'" in left


def test_a_large_archive_is_refused_when_printed_and_when_run(checkout, tmp_path, refused):
    with (checkout / "weights.bin").open("wb") as file:
        file.truncate(2_000_001)
    git("add", "--intent-to-add", "weights.bin")
    message = refused("gcloud", *WHERE, *DATA, "--max-archive-mb", "2")
    assert "the largest weights.bin (2.00 MB): --max-archive-mb allows 2" in message
    # A script that was kept, and is run after the checkout has grown.
    (checkout / "weights.bin").unlink()
    job, _ = load_job(Path("configs/demo.py"), ("--output", "gs://bucket/runs"))
    text = script(job, Gcloud("v5p-8", "my-project", "us-east5-a", on_workers=("runs/demo",), max_archive_mb=2))
    with (checkout / "weights.bin").open("wb") as file:
        file.truncate(2_000_001)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the limit is 2 MB" in done.stderr
    assert "gcloud" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "declared", "named"),
    [
        ((), (), ["tokenizer runs/demo/tokenizer.jsonl, data.mixture runs/demo/data/ja/train and 3 more", "runs/demo"]),
        ((), ("runs/demo/data",), ["tokenizer runs/demo/tokenizer.jsonl will be", "--on-workers runs/demo/tok"]),
        (("--tokenizer", "gs://bucket/tokenizer.jsonl"), ("runs/demo/data/",), []),
        (("--tokenizer", "configs/../setup.cfg"), ("./runs/demo/data",), []),
        (("--init-from", "runs/other"), ("runs/demo",), ["init_from runs/other will be missing"]),
        (("--init-from", "/mnt/models/8b"), ("runs/demo", "/mnt"), []),
        (("--init-from", "/mnt/models/8b"), ("runs/demo", "/mnt/model"), ["init_from /mnt/models/8b will be missing"]),
        (("--init-from", "gs://bucket/8b"), ("runs/demo",), ["init_from gs://bucket/8b is not allowed"]),
        (("--heldout.ja", "gs://bucket/ja"), ("runs/demo",), ["heldout.ja gs://bucket/ja is not allowed"]),
        (("--heldout.ja", "gs://bucket/ja", "--data.cache", "cache"), ("runs/demo",), []),
        (("--fork", "runs/other@500"), ("runs/demo",), ["fork runs/other will be missing"]),
        (("--fork", "gs://bucket/runs/other@500"), ("runs/demo",), []),
        (
            ("--evaluation.tasks", "jmmlu", "--evaluation.paths", "jmmlu", "eval/jmmlu"),
            ("runs/demo",),
            ["evaluation.paths.jmmlu eval/jmmlu will be missing"],
        ),
        (("--heldout.ja", "shards/heldout"), ("runs/demo",), ["heldout.ja shards/heldout will be missing"]),
    ],
)
def test_what_the_run_reads_must_be_on_the_workers(checkout, printed, refused, overrides, declared, named):
    options = [word for path in declared for word in ("--on-workers", path)]
    overrides = ("--output", "gs://bucket/runs", *overrides)
    if named:
        message = refused("gcloud", *WHERE, *options, overrides=overrides)
        assert all(words in message for words in named), message
        assert len(message) < 400
    else:
        assert printed("gcloud", *WHERE, *options, overrides=overrides)


def test_tracked_data_are_reachable(checkout, printed):
    folder = checkout / "shards"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    git("add", "shards")
    overrides = ("--init-from", "shards", "--output", "gs://bucket/runs")
    assert printed("gcloud", *WHERE, *DATA, overrides=overrides)


def test_the_projects_gitignore_hides_what_the_readme_makes_and_no_tracked_file(tmp_path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    ignored = ["shards/news/train/manifest.json", "data/raw.txt", "exported/config.json", "imported/config.json"]
    ignored += ["clean.jsonl.gz", "corpus-ja.jsonl", "out.npz", "runs/x", "demo-17.log"]
    listed = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout.splitlines() == ignored
    wrong = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.stdout == ""
    source = ["src/plamo2_jax/data/new.py", "tests/data/test_new.py", "tests/data/x.jsonl", "configs/new.py"]
    assert subprocess.run(["git", "check-ignore", *source], cwd=ROOT, capture_output=True).returncode == 1


def test_a_folder_that_git_cannot_read_is_named(checkout, refused):
    shutil.rmtree(checkout / ".git" / "objects")
    assert "git cannot list the files of" in refused("gcloud", *WHERE, *DATA)
