"""What a launch copies to the workers: the files that git tracks, as they are in the working tree, and the config file.

Nothing else leaves this machine: data, checkpoints and exported models lie untracked in a checkout. What the run reads must therefore be
tracked, or in a bucket, or be declared by the user as present on the workers; `require_reachable` checks that before anything costs money.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.checks import require_tool
from plamo2_jax.launch.job import Input
from plamo2_jax.storage import address, is_remote

_SHOWN = 5
"""Files that a summary names."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files to copy, and those that stay behind."""

    source: Path
    """The checkout."""
    files: dict[str, int]
    """Bytes of each file to copy, by its path in the checkout."""
    config: str
    """The config file's path in the checkout."""
    untracked: tuple[str, ...]
    """Files that git neither tracks nor ignores. They are not copied."""

    @property
    def bytes(self) -> int:
        """Bytes of all files, before compression."""
        return sum(self.files.values())

    def summary(self) -> list[str]:
        """Lines that say what is copied, what is largest in it, and what is not copied."""
        largest = sorted(self.files, key=lambda path: (-self.files[path], path))[:_SHOWN]
        lines = [
            f"copied to each worker: {len(self.files):,} files that git tracks, {_size(self.bytes)} before compression"
        ]
        lines += [f"  {_size(self.files[path]):>10}  {_shown(path)}" for path in largest]
        if self.untracked:
            names = ", ".join(map(_shown, self.untracked[:_SHOWN])) + (", ..." if len(self.untracked) > _SHOWN else "")
            lines.append(f"not copied, as git does not track them: {len(self.untracked):,} files ({names})")
        return lines

    def require_at_most(self, megabytes: int) -> None:
        """Refuse an archive over the limit.

        Raises:
            ValueError: it is larger; the message names the largest file.
        """
        if self.bytes > megabytes * 10**6:
            largest = max(self.files, key=self.files.__getitem__)
            raise PlamoError(
                f"the tracked files of {self.source} have {_size(self.bytes)}, the largest {_shown(largest)} "
                f"({_size(self.files[largest])}); --max-archive-mb allows {megabytes}. Untrack large files, or raise the limit"
            )


def archive(source: Path, config: Path) -> Archive:
    """List the files to copy.

    Args:
        source: A git checkout.
        config: The config file, inside it. It is copied even if git does not track it.

    Raises:
        ValueError: git is missing or cannot list the files.
    """
    require_tool("git")
    relative = config.relative_to(source).as_posix()
    listed = dict.fromkeys([*_git(source, "--cached"), relative])
    # A tracked file may have been deleted; a submodule is a folder, whose files belong to another repository.
    files = {path: (source / path).lstat().st_size for path in listed if _is_file(source / path)}
    untracked = tuple(path for path in _git(source, "--others", "--exclude-standard") if path != relative)
    return Archive(source, files, relative, untracked)


def _git(source: Path, *options: str) -> list[str]:
    done = subprocess.run(["git", "-C", source, "ls-files", "-z", *options], capture_output=True)
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
        raise PlamoError(f"git cannot list the files of {source}: {reason[:200]}")
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def require_reachable(inputs: Iterable[Input], archive: Archive, on_workers: Sequence[str]) -> None:
    """Refuse a run that reads what the workers will not have.

    Args:
        inputs: What the run reads.
        archive: What is copied.
        on_workers: Files and folders that the user declares as present on the workers.

    Raises:
        ValueError: a path is in a bucket that this input cannot be read from, or will be missing.
    """
    present = [_normal(path) for path in on_workers]
    missing = []
    for each in inputs:
        if is_remote(each.path):
            if each.in_bucket:
                continue
            raise PlamoError(
                f"{each.name} {address(each.path)} is not allowed: only output and tokenizer may be in a bucket. Copy it to the workers "
                "with --setup and declare where it is then with --on-workers PATH"
            )
        path = _normal(each.path)
        copied = any(_is_below(file, path) for file in archive.files) and not path.startswith("/")
        if not copied and not any(_is_below(path, folder) for folder in present):
            missing.append(each)
    if missing:
        first = ", ".join(f"{each.name} {each.path}" for each in missing[:2])
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        raise PlamoError(
            f"{first}{more} will be missing on the workers: not tracked by git. Bring it there with --setup (or mount a shared disk), and "
            f"declare it with --on-workers {_common([_normal(each.path) for each in missing])}"
        )


def _normal(path: str) -> str:
    """A path as the workers see it, from the checkout there."""
    return posixpath.normpath(path)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _common(paths: list[str]) -> str:
    """A folder that holds all paths, or the first path where they have none in common."""
    same = {posixpath.isabs(path) for path in paths}
    common = posixpath.commonpath(paths) if len(same) == 1 else ""
    return common if common not in ("", "/") else paths[0]


def _size(size: int) -> str:
    return f"{size / 10**6:,.2f} MB"


def _shown(path: str) -> str:
    """A path on one line of a message or a comment."""
    return path if path.isprintable() else ascii(path)
