"""The files that a launch copies to the workers: the files that git tracks, as they are in the working tree, and the config file.

Nothing else leaves this machine, because data, checkpoints and exported models in a checkout are untracked. So the files that the run reads
must be tracked, in a bucket, or declared by the user as present on the workers. `require_reachable` checks this before any cost arises.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import commonpath, isabs, normpath

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.checks import require_tool
from plamo2_jax.launch.job import Input
from plamo2_jax.storage import address, is_remote

_SHOWN = 5
"""Number of files that a summary lists."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files to copy, and the files that are not copied."""

    source: Path
    """The checkout."""
    files: dict[str, int]
    """Size of each file to copy in bytes, by its path in the checkout."""
    config: str
    """Path of the config file in the checkout."""
    untracked: tuple[str, ...]
    """Files that git neither tracks nor ignores. They are not copied."""

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes, before compression."""
        return sum(self.files.values())

    def summary(self) -> list[str]:
        """Return lines that describe the copied files, the largest files, and the files that are not copied."""
        largest = sorted(self.files, key=lambda path: (-self.files[path], path))[:_SHOWN]
        lines = [
            f"copied to each worker: {len(self.files):,} files that git tracks, {_size(self.bytes)} before compression"
        ]
        lines += [f"  {_size(self.files[path]):>10}  {_shown(path)}" for path in largest]
        if self.untracked:
            names = ", ".join(map(_shown, self.untracked[:_SHOWN])) + (", ..." if len(self.untracked) > _SHOWN else "")
            lines.append(f"not copied, because git does not track them: {len(self.untracked):,} files ({names})")
        return lines

    def require_at_most(self, megabytes: int) -> None:
        """Check the size of the archive. If it exceeds the limit, raise a PlamoError that names the largest file."""
        if self.bytes > megabytes * 10**6:
            largest = max(self.files, key=self.files.__getitem__)
            raise PlamoError(
                f"the tracked files of {self.source} have {_size(self.bytes)}, the largest {_shown(largest)} "
                f"({_size(self.files[largest])}): --max-archive-mb allows {megabytes}. Untrack large files, or raise the limit"
            )


def archive(source: Path, config: Path) -> Archive:
    """List the files to copy.

    Args:
        source: A git checkout.
        config: The config file, inside it. It is copied even if git does not track it.

    Raises:
        PlamoError: git is missing or cannot list the files.
    """
    require_tool("git")
    relative = config.relative_to(source).as_posix()
    listed = dict.fromkeys([*_git(source, "--cached"), relative])
    # A tracked file may have been deleted; a submodule is a folder, whose files belong to another repository.
    found = {path: source / path for path in listed}
    files = {path: file.lstat().st_size for path, file in found.items() if file.is_symlink() or file.is_file()}
    untracked = tuple(path for path in _git(source, "--others", "--exclude-standard") if path != relative)
    return Archive(source, files, relative, untracked)


def _git(source: Path, *options: str) -> list[str]:
    done = subprocess.run(["git", "-C", source, "ls-files", "-z", *options], capture_output=True)
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
        raise PlamoError(f"git cannot list the files of {source}: {reason[:200]}")
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def require_reachable(inputs: Iterable[Input], archive: Archive, on_workers: Sequence[str]) -> None:
    """Check that the workers will have every file that the run reads.

    Args:
        inputs: Files and folders that the run reads.
        archive: Files that are copied.
        on_workers: Files and folders that the user declares as present on the workers.

    Raises:
        PlamoError: A path will be missing, or is in a bucket although the run cannot read this input from a bucket.
    """
    present = list(map(normpath, on_workers))
    missing = []
    for each in inputs:
        if is_remote(each.path):
            if each.in_bucket:
                continue
            raise PlamoError(
                f"{each.name} {address(each.path)} is not allowed: only output, fork, tokenizer and, with data.cache, shards may be in a "
                "bucket. Copy it to the workers with --setup, and declare its path there with --on-workers PATH"
            )
        path = normpath(each.path)
        copied = any(_is_below(file, path) for file in archive.files) and not isabs(path)
        if not copied and not any(_is_below(path, folder) for folder in present):
            missing.append(each)
    if missing:
        first = ", ".join(f"{each.name} {each.path}" for each in missing[:2])
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        them = "it" if len(missing) == 1 else "them"
        raise PlamoError(
            f"{first}{more} will be missing on the workers, because git does not track {them}. Copy {them} there with --setup (or mount a "
            f"shared disk), and declare {them} with --on-workers {_common([normpath(each.path) for each in missing])}"
        )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _common(paths: list[str]) -> str:
    """Return a folder that contains all paths, or the first path if there is none."""
    common = commonpath(paths) if len(set(map(isabs, paths))) == 1 else ""
    return common if common not in ("", "/") else paths[0]


def _size(size: int) -> str:
    return f"{size / 10**6:,.2f} MB"


def _shown(path: str) -> str:
    """Return a path as text that fits on one line of a message or comment."""
    return path if path.isprintable() else ascii(path)
