"""Training batches: order, mixing, division among processes and exact continuation."""

import json
from collections import Counter

import grain.checkpoint
import numpy as np
import orbax.checkpoint as ocp
import pytest

from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches, train_iterator
from plamo2_jax.data.shards import ShardError
from plamo2_jax.errors import PlamoError
from support.shards import check_contract, documents_of, expected_segments, segments_of, write
from support.streams import assert_same, joined, take

T = 16
LENGTHS = [3 + (7 * i) % 29 for i in range(40)]


@pytest.fixture(scope="module")
def folder(letters, tmp_path_factory):
    return write(tmp_path_factory.mktemp("pipeline") / "shards", documents_of(LENGTHS), letters)


def config_of(folder, **fields) -> DataConfig:
    return DataConfig(**{"mixture": (MixtureItem(folder),), "sequence_length": T, "batch_size": 4, **fields})


def stream(config, tokenizer, batches, **process):
    """Segments in the order in which they are read: with one bin the packer keeps it."""
    return segments_of(take(train_iterator(config, tokenizer, **process), batches))


def test_one_seed_one_stream(folder, letters):
    config = config_of(folder, seed=3, packing_bins=8)
    first = take(train_iterator(config, letters), 20)
    assert_same(first, take(train_iterator(config, letters), 20))
    others = [take(train_iterator(config_of(folder, seed=seed, packing_bins=8), letters), 1)[0] for seed in (4, 5)]
    tokens = [batch["tokens"].tobytes() for batch in (first[0], *others)]
    assert len(set(tokens)) == 3


def test_reading_ahead_changes_nothing(folder, letters):
    plain = config_of(folder, packing_bins=8, prefetch_batches=0, read_threads=0)
    ahead = config_of(folder, packing_bins=8, prefetch_batches=3, read_threads=4)
    assert_same(take(train_iterator(plain, letters), 20), take(train_iterator(ahead, letters), 20))


def test_every_epoch_has_its_own_order(folder, letters):
    expected = expected_segments(documents_of(LENGTHS), letters, T)
    segments = stream(config_of(folder, packing_bins=1), letters, 60)
    epochs = [segments[i * len(expected) : (i + 1) * len(expected)] for i in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(expected)
    assert epochs[0] != epochs[1] != epochs[2]
    assert expected not in epochs


def test_without_shuffling_documents_come_in_order(folder, letters):
    expected = expected_segments(documents_of(LENGTHS), letters, T)
    segments = stream(config_of(folder, packing_bins=1, shuffle=False), letters, 40)
    assert segments[: 2 * len(expected)] == 2 * expected


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.2, 0.8), (1.0, 1.0)])
def test_weights_are_shares_of_the_tokens(letters, tmp_path, weights):
    # Documents of very different lengths: weights by document would be far off.
    lengths = {"short": [4] * 800, "long": [60] * 400}
    alphabets = {"short": range(300), "long": range(300, 600)}
    first_long = int(letters.encode(documents_of([1], letters=range(300, 301))[0].text)[0])
    for name in lengths:
        write(tmp_path / name, documents_of(lengths[name], letters=alphabets[name]), letters)
    mixture = tuple(MixtureItem(tmp_path / name, weight) for name, weight in zip(lengths, weights, strict=True))
    config = config_of(tmp_path, mixture=mixture, batch_size=32, packing_bins=32)
    counts = np.zeros(2)
    for batch in take(train_iterator(config, letters), 40):
        # Of an end only the input says where it belongs, of a beginning only the target.
        of_long = np.maximum(batch["tokens"], batch["targets"])[batch["segment_ids"] != 0] >= first_long
        counts += [np.count_nonzero(~of_long), np.count_nonzero(of_long)]
    np.testing.assert_allclose(counts / counts.sum(), np.array(weights) / sum(weights), atol=0.02)


@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_all_processes_are_the_batches_of_one(folder, letters, count):
    config = config_of(folder, packing_bins=7)
    whole = take(train_iterator(config, letters), 20)
    parts = [train_iterator(config, letters, process_index=i, process_count=count) for i in range(count)]
    assert_same(joined([take(part, 20) for part in parts]), whole)
    # The position in the data is that of the whole: a job of another size goes on from it.
    state = parts[1].get_state()
    other = train_iterator(config, letters)
    other.set_state(state)
    assert_same(take(other, 5), take_from(config, letters, 20, 5))


def take_from(config, tokenizer, start, count):
    return take(train_iterator(config, tokenizer), start + count)[start:]


def test_processes_divide_the_batch(folder, letters):
    config = config_of(folder, batch_size=6, packing_bins=4)
    check_contract(next(train_iterator(config, letters, process_index=2, process_count=3)), 2, T)
    with pytest.raises(ValueError, match=r"batch_size=6 .* multiple of the number of processes, 4"):
        train_iterator(config, letters, process_index=0, process_count=4)
    with pytest.raises(ValueError, match="process_index=3"):
        train_iterator(config, letters, process_index=3, process_count=3)


@pytest.mark.parametrize(("prefetch", "threads"), [(0, 0), (4, 2)])
def test_a_restored_iterator_goes_on_exactly(folder, letters, prefetch, threads):
    # 7 bins and batches of 4: batches end in the middle of a set of rows; 30 batches are several epochs.
    config = config_of(folder, packing_bins=7, prefetch_batches=prefetch, read_threads=threads)
    whole = take(train_iterator(config, letters), 40)
    running = train_iterator(config, letters)
    for done in range(31):
        if done in (0, 1, 2, 7, 13, 30):
            restored = train_iterator(config, letters)
            take(restored, 2)
            restored.set_state(json.loads(json.dumps(running.get_state())))
            assert_same(take(restored, 10), whole[done : done + 10])
        next(running)


def test_a_restored_mixture_of_a_process_goes_on_exactly(folder, letters, tmp_path):
    other = write(tmp_path / "other", documents_of([9] * 21, seed=1), letters)
    mixture = (MixtureItem(folder, 2.0), MixtureItem(other, 1.0))
    config = config_of(folder, mixture=mixture, packing_bins=5)
    whole = take(train_iterator(config, letters, process_index=1, process_count=2), 30)
    running = train_iterator(config, letters, process_index=1, process_count=2)
    assert_same(take(running, 17), whole[:17])
    restored = train_iterator(config, letters, process_index=1, process_count=2)
    restored.set_state(running.get_state())
    assert_same(take(restored, 13), whole[17:])


def test_orbax_saves_and_restores_the_position(folder, letters, tmp_path):
    config = config_of(folder, packing_bins=7)
    whole = take(train_iterator(config, letters), 20)
    running = train_iterator(config, letters)
    take(running, 9)
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_names=("data",)) as manager:
        manager.save(9, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(running)))
        manager.wait_until_finished()
        restored = train_iterator(config, letters)
        manager.restore(9, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
        assert_same(take(restored, 11), whole[9:])
    assert_same(take(running, 11), whole[9:])


def test_worker_processes_read_everything_and_go_on_exactly(folder, letters):
    config = config_of(folder, packing_bins=4, worker_processes=1, prefetch_batches=0)
    running = train_iterator(config, letters)
    first = take(running, 3)
    state = json.loads(json.dumps(running.get_state()))
    then = take(running, 5)
    running.set_state(state)
    assert_same(take(running, 5), then)
    running.close()
    # One worker packs the whole stream: the same rows as without.
    assert_same(first + then, take(train_iterator(config_of(folder, packing_bins=4), letters), 8))


def test_every_worker_process_follows_the_weights(letters, tmp_path):
    # By these weights, elements of a single mixture would alternate, and each worker would read one folder only.
    for name, length, start in (("short", 4, 0), ("long", 14, 300)):
        write(tmp_path / name, documents_of([length] * 100, letters=range(start, start + 300)), letters)
    first_long = int(letters.encode(documents_of([1], letters=range(300, 301))[0].text)[0])
    mixture = (MixtureItem(tmp_path / "short", 1.0), MixtureItem(tmp_path / "long", 3.0))
    config = config_of(tmp_path, mixture=mixture, batch_size=8, packing_bins=8, worker_processes=2, prefetch_batches=0)
    running = train_iterator(config, letters)
    batches = take(running, 5)
    state = json.loads(json.dumps(running.get_state()))
    then = take(running, 11)
    running.set_state(state)
    assert_same(take(running, 11), then)
    running.close()
    batches += then
    for worker in (0, 1):
        of_long = np.concatenate(
            [
                np.maximum(batch["tokens"], batch["targets"])[batch["segment_ids"] != 0] >= first_long
                for batch in batches[worker::2]
            ]
        )
        assert of_long.mean() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_damaged_record_ends_training_with_its_place(letters, tmp_path, prefetch):
    folder = write(tmp_path / "shards", documents_of(LENGTHS), letters)
    shard = folder / "shard-00002.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[64:200] = bytes(136)
    shard.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"shards, document \d+"):
        take(train_iterator(config_of(folder, packing_bins=4, prefetch_batches=prefetch), letters), 200)


def test_heldout_repeats_and_divides_among_processes(folder, letters):
    config = config_of(folder, batch_size=6, packing_bins=4)
    whole = heldout_batches(config, folder, letters)
    batches = list(whole)
    assert_same(batches, list(whole))
    parts = [list(heldout_batches(config, folder, letters, process_index=i, process_count=3)) for i in range(3)]
    for number, batch in enumerate(batches):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([part[number][name] for part in parts]))


def test_another_tokenizer_is_refused(folder, letters, vocabulary):
    for read in (
        lambda: train_iterator(config_of(folder), vocabulary),
        lambda: heldout_batches(config_of(folder), folder, vocabulary),
    ):
        with pytest.raises(
            ShardError, match=f"{letters.fingerprint[:12]}.*not with the given tokenizer {vocabulary.fingerprint[:12]}"
        ):
            read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixture": ()}, "DataConfig.mixture=.* at least one"),
        ({"sequence_length": 1}, "DataConfig.sequence_length=1 is not allowed: it must be at least 2"),
        ({"batch_size": 0}, "DataConfig.batch_size=0 .* at least 1"),
        ({"packing_bins": 0}, "DataConfig.packing_bins=0"),
        ({"seed": -1}, "DataConfig.seed=-1 .* between 0 and"),
        ({"worker_processes": -1}, "DataConfig.worker_processes=-1"),
    ],
)
def test_a_config_out_of_range_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **fields)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(tmp_path, weight):
    with pytest.raises(ValueError, match=r"MixtureItem\.weight="):
        MixtureItem(tmp_path, weight)


def test_synthetic_folders_have_a_ceiling(folder):
    mixture = (
        MixtureItem(folder, 0.7),
        MixtureItem(folder, 0.2, synthetic=True),
        MixtureItem(folder, 0.1, synthetic=True),
    )
    assert config_of(folder, mixture=mixture, max_synthetic_share=0.3).max_synthetic_share == 0.3
    with pytest.raises(
        PlamoError, match=r"max_synthetic_share=0\.29 is not allowed: it must be at least 0\.3, the share of"
    ):
        config_of(folder, mixture=mixture, max_synthetic_share=0.29)
    with pytest.raises(PlamoError, match=r"max_synthetic_share=1\.5 is not allowed: it must be between 0 and 1"):
        config_of(folder, max_synthetic_share=1.5)
