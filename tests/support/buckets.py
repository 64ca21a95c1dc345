"""A bucket that is a folder: etils works on it below its gs:// interface."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from etils.epath import backend, gpath

from plamo2_jax import storage

OPERATIONS = ("open", "exists", "isdir", "listdir", "glob", "walk", "makedirs", "mkdir", "rmtree", "remove", "rename")
OPERATIONS += ("replace", "copy", "stat")


class Bucket:
    """etils' operations on gs://, on the files below a folder. As in an object store nothing can be appended to."""

    def __init__(self, folder: Path):
        self.folder = folder

    def here(self, value):
        """An address as a path of this machine; anything else as it is."""
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
        return str(self.folder) + "/" + text.removeprefix("gs://") if text.startswith("gs://") else value

    def there(self, path: str) -> str:
        return "gs://" + os.path.relpath(path, self.folder)

    def __getattr__(self, name: str):
        def operation(*arguments, **options):
            assert name != "open" or "a" not in arguments[1]
            if name == "open" and "w" in arguments[1]:
                Path(self.here(arguments[0])).parent.mkdir(parents=True, exist_ok=True)  # There are no folders to make.
            found = getattr(backend.os_backend, name)(*map(self.here, arguments), **options)
            return [self.there(path) for path in found] if name == "glob" else found

        assert name in OPERATIONS
        return operation


def mount(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Make gs:// lead to the bucket."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", bucket)
    monkeypatch.setitem(storage._DRIVERS, "gs", "json")  # Any package that is there.
    return bucket
