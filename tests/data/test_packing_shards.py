"""packing="per_process": each process packs its own share, and a job of any number of processes has the same batches."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plamo2_jax.align.examples import Examples
from plamo2_jax.cli.run_options import load_run, parse_config
from plamo2_jax.data.packing import Pieces
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, train_iterator
from plamo2_jax.data.shards import open_shards
from plamo2_jax.data.upsampling import UpsampledPieces
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.config import free_fields
from plamo2_jax.train.pretraining import Pretrain
from support.shards import documents_of, expected_segments, segments_of, write
from support.streams import assert_same, joined, take

ROOT = Path(__file__).parents[2]
T = 16
LENGTHS = [3 + (7 * i) % 29 for i in range(80)]


@pytest.fixture(scope="module")
def folder(letters, tmp_path_factory):
    return write(tmp_path_factory.mktemp("packing_shards") / "shards", documents_of(LENGTHS), letters)


def config_of(folder, **fields) -> DataConfig:
    defaults = {
        "mixture": (MixtureItem(folder),),
        "sequence_length": T,
        "batch_size": 16,
        "packing_bins": 3,
        "read_threads": 0,
        "prefetch_batches": 1,
    }
    return DataConfig(**{**defaults, "packing": "per_process", "packing_shards": 8, **fields})


def iterators(config, tokenizer, count):
    return [train_iterator(config, tokenizer, process_index=i, process_count=count) for i in range(count)]


def gathered(parts):
    """The data position as a checkpoint holds it."""
    states = [part.get_state() for part in parts]
    if "packing_shards" not in states[0]:
        assert all(state == states[0] for state in states)
        return json.loads(json.dumps(states[0]))
    shards = [index for state in states for index in state["packing_shards"]]
    assert len(shards) == len(set(shards)) == 8
    return json.loads(
        json.dumps({"packing_shards": {k: v for state in states for k, v in state["packing_shards"].items()}})
    )


@pytest.mark.parametrize("packing", ["global", "per_process"])
def test_a_job_goes_on_exactly_with_another_number_of_processes(folder, letters, tmp_path, packing):
    other = write(tmp_path / "other", documents_of([9] * 60, seed=1), letters)
    shards = {"global": 0, "per_process": 8}[packing]
    mixture = (MixtureItem(folder, 2.0), MixtureItem(other))
    config = config_of(folder, mixture=mixture, packing=packing, packing_shards=shards)
    whole = take(train_iterator(config, letters), 26)
    done, position = 0, None
    for processes, batches in ((4, 7), (2, 8), (8, 7), (1, 4)):
        parts = iterators(config, letters, processes)
        for part in parts:
            if position is not None:
                part.set_state(position)
        assert_same(joined([take(part, batches) for part in parts]), whole[done : done + batches])
        done += batches
        position = gathered(parts)
        for part in parts:
            part.close()


def test_every_document_is_read_once_in_each_epoch_of_its_shard(folder, letters):
    # One bin keeps the order in which a shard reads.
    config = config_of(folder, packing_bins=1)
    parts, position, read = [], None, {shard: [] for shard in range(8)}
    for processes, batches in ((4, 4), (2, 5), (8, 21)):
        parts = iterators(config, letters, processes)
        for part in parts:
            if position is not None:
                part.set_state(position)
        for batch in joined([take(part, batches) for part in parts]):
            for shard in range(8):
                rows = {name: array[2 * shard : 2 * shard + 2] for name, array in batch.items()}
                read[shard] += segments_of([rows])
        position = gathered(parts)
    expected = Counter(expected_segments(documents_of(LENGTHS), letters, T))
    epochs = Counter()
    pieces = Pieces(open_shards(folder), T, letters.bos_id, letters.eos_id)
    for shard, segments in read.items():
        length = len(pieces.share(shard, 8))
        assert len(segments) >= 2 * length
        assert Counter(segments[:length]) == Counter(segments[length : 2 * length])
        assert segments[:length] != segments[length : 2 * length]
        epochs.update(segments[:length])
    assert epochs == expected


def test_a_process_reads_only_its_own_documents(folder, letters):
    shares = [Pieces(open_shards(folder), T, letters.bos_id, letters.eos_id).share(shard, 8) for shard in range(8)]
    own = {tuple(share[i]["targets"].tolist()) for share in shares[2:4] for i in range(len(share))}
    part = train_iterator(config_of(folder), letters, process_index=1, process_count=4)
    read = {targets for _, targets in segments_of(take(part, 20))}
    assert read == own


def test_worker_processes_and_threads_change_nothing(folder, letters):
    config = config_of(folder, batch_size=4, packing_shards=4)
    whole = take(train_iterator(config, letters), 12)
    for fields in ({"prefetch_batches": 0}, {"read_threads": 3}):
        other = config_of(folder, batch_size=4, packing_shards=4, **fields)
        assert_same(take(train_iterator(other, letters), 12), whole)
    workers = config_of(folder, batch_size=4, packing_shards=4, worker_processes=2)
    running = train_iterator(workers, letters)
    assert_same(take(running, 5), whole[:5])
    position = json.loads(json.dumps(running.get_state()))
    running.close()
    restored = train_iterator(config, letters)
    restored.set_state(position)
    assert_same(take(restored, 7), whole[5:])
    assert "worker_processes" in set(free_fields(workers))
    assert "worker_processes" not in set(free_fields(config_of(folder, packing="global", packing_shards=0)))


def test_shares_have_about_equal_tokens_and_all_elements(folder, letters):
    pieces = Pieces(open_shards(folder), T, letters.bos_id, letters.eos_id)
    rng = np.random.default_rng(0)
    examples = Examples([{"tokens": np.arange(n)} for n in rng.integers(1, 40, 50)])
    for source in (pieces, UpsampledPieces(pieces, 20, 3), examples):
        shares = [source.share(i, 4) for i in range(4)]
        assert sum(share.targets for share in shares) == source.targets
        assert max(share.targets for share in shares) - min(share.targets for share in shares) < 3 * 40
        elements = [share[i]["tokens"].tolist() for share in shares for i in range(len(share))]
        assert elements == [source[i]["tokens"].tolist() for i in range(len(source))]
        for share in shares:
            assert share.targets == sum(len(share[i]["tokens"]) for i in range(len(share)))


def test_bad_numbers_of_shards_are_refused(folder, letters):
    with pytest.raises(PlamoError, match=r"packing_shards=3 is not allowed: it must be a divisor of batch_size=16"):
        config_of(folder, packing_shards=3)
    with pytest.raises(PlamoError, match=r"packing_shards=8 is not allowed: it must be 0 with packing=global"):
        config_of(folder, packing="global")
    with pytest.raises(PlamoError, match=r"packing='local' is not allowed"):
        config_of(folder, packing="local")
    with pytest.raises(PlamoError, match=r"packing_shards=8 .* a multiple of the number of processes, 16"):
        train_iterator(config_of(folder), letters, process_index=0, process_count=16)
    with pytest.raises(PlamoError, match=r"packing_shards=128 is not allowed: .*shards has too few .* Use fewer"):
        train_iterator(config_of(folder, batch_size=128, packing_shards=128), letters)
    with pytest.raises(PlamoError, match=r"the checkpoint has no data position for packing shard 0"):
        train_iterator(config_of(folder), letters).set_state({"packing_shards": {}})


def test_the_options_on_the_page_exist():
    page = (ROOT / "docs" / "input_pipeline.md").read_text(encoding="utf-8")
    lines = re.search(r"<!-- options -->\n```sh\n(.*?)```", page, re.DOTALL).group(1).strip().splitlines()
    configs = []
    for line in lines:
        _, verb, file, *options = line.split()
        configs.append(parse_config(load_run(ROOT / file, (Pretrain,), file), options, f"plamo2 {verb}"))
    assert [config.data.packing_shards for config in configs] == [64, 64, 0]
    assert configs[1].data.worker_processes == 4
    assert (configs[2].data.cache, configs[2].data.cache_gib) == (Path("/mnt/ssd/shards"), 500)
