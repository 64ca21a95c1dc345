"""The one rule for files of a model's folder: the folder's own, links within it, and the Hugging Face cache's links to its blobs."""

import os
import socket
import tempfile

import pytest

from plamo2_jax.model_files import check_tree_inside, file_inside, optional_file


@pytest.fixture
def cache(tmp_path):
    """A repository of the Hugging Face cache, with one file."""
    repository = tmp_path / "hub" / "models--pfnet--plamo-2-1b"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "d2c1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/d2c1")
    (tmp_path / "private.txt").write_text("secret")
    return snapshot


def test_plain_files_and_links_within_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "other.json").symlink_to("config.json")
    (folder / "again.json").symlink_to(folder / "other.json")
    (tmp_path / "named").symlink_to(folder)
    for name in ("config.json", "other.json", "again.json"):
        assert file_inside(folder, name).read_text() == "{}"
        # The user may name the folder by a link.
        assert optional_file(tmp_path / "named", name).read_text() == "{}"
    assert optional_file(folder, "none.json") is None
    assert optional_file(folder / "config.json", "none.json") is None
    with pytest.raises(ValueError, match=r"has no file none\.json"):
        file_inside(folder, "none.json")


def test_a_snapshot_of_the_hugging_face_cache_is_read(cache, tmp_path, monkeypatch):
    assert file_inside(cache, "config.json").read_text() == "{}"
    (tmp_path / "model").symlink_to(cache)
    assert file_inside(tmp_path / "model", "config.json").read_text() == "{}"
    monkeypatch.chdir(cache)
    assert file_inside(".", "config.json").read_text() == "{}"


def other_repository(cache):
    (cache.parents[2] / "models--other" / "blobs").mkdir(parents=True)
    (cache.parents[2] / "models--other" / "blobs" / "f00d").write_text("{}")
    return "../../../models--other/blobs/f00d"


def below_blobs(cache):
    (cache.parents[1] / "blobs" / "deeper").mkdir()
    (cache.parents[1] / "blobs" / "deeper" / "f00d").write_text("{}")
    return "../../blobs/deeper/f00d"


def linked_blob(cache):
    (cache.parents[1] / "blobs" / "f00d").symlink_to("../../../private.txt")
    return "../../blobs/f00d"


def linked_blobs(cache):
    blobs = cache.parents[1] / "blobs"
    blobs.rename(cache.parents[3] / "elsewhere")
    blobs.symlink_to(cache.parents[3] / "elsewhere")
    return "../../blobs/d2c1"


def no_cache(cache):
    cache.parents[1].rename(cache.parents[2] / "models")
    return "../../blobs/d2c1"


@pytest.mark.parametrize(
    "target",
    [
        lambda cache: "../../../../private.txt",
        lambda cache: "/etc/passwd",
        lambda cache: "../../blobs/../../../private.txt",
        lambda cache: "../../blobs",
        other_repository,
        below_blobs,
        linked_blob,
        linked_blobs,
        no_cache,
    ],
)
def test_a_link_out_of_the_folder_is_refused(cache, target):
    target = target(cache)
    folder = cache if cache.exists() else cache.parents[2] / "models" / "snapshots" / cache.name
    (folder / "chat_template.jinja").symlink_to(target)
    for read in (file_inside, optional_file):
        with pytest.raises(ValueError, match=r"is a (symbolic link out of its )?folder"):
            read(folder, "chat_template.jinja")


class OfMine(ValueError):
    pass


def fifo(path):
    os.mkfifo(path)


def in_place(path):
    path.mkdir()


def bound(path):
    # A socket's own name must be short, that of a link to it need not.
    name = tempfile.mktemp(dir="/tmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
    os.rename(name, path)


def loop(path):
    path.with_name("other").symlink_to(path)
    path.symlink_to("other")


def broken(path):
    path.symlink_to("nothing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "a device, a pipe or a socket"),
        (bound, "a device, a pipe or a socket"),
        (in_place, "is a folder"),
        (loop, "cannot be read: Too many levels"),
        (broken, "cannot be read: No such file"),
    ],
)
def test_what_is_no_regular_file_is_refused(tmp_path, make, message):
    make(tmp_path / "config.json")
    with pytest.raises(OfMine, match=message):
        optional_file(tmp_path, "config.json", error=OfMine)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "a\0"])
def test_only_plain_names_are_allowed(tmp_path, name):
    with pytest.raises(ValueError, match="only plain file names are allowed"):
        optional_file(tmp_path, name)


def test_a_checkpoint_has_no_link_out_of_its_run(tmp_path):
    run = tmp_path / "run"
    step = run / "checkpoints" / "3"
    (step / "params").mkdir(parents=True)
    (step / "params" / "data").write_text("x")
    (step / "params" / "same").symlink_to("data")
    (step / "shared").symlink_to("params")
    check_tree_inside(run, step)
    (tmp_path / "private.txt").write_text("secret")
    for path, target in ((step / "params" / "leak", "../../../../private.txt"), (step / "ema", tmp_path)):
        path.symlink_to(target)
        with pytest.raises(ValueError, match=r"is a symbolic link out of its folder"):
            check_tree_inside(run, step)
        path.unlink()
    os.mkfifo(step / "params" / "pipe")
    with pytest.raises(ValueError, match="pipe"):
        check_tree_inside(run, step)
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(ValueError, match=r"is a symbolic link out of its folder"):
        check_tree_inside(other, other / "checkpoints" / "3")
