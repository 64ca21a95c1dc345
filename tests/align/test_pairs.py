"""Reading pairs, encoding them, and the rows they are packed into."""

import itertools

import numpy as np
import pytest

from plamo2_jax.align.examples import Examples
from plamo2_jax.align.pairs import encode_pair, pair_collator, read_pairs, to_pair
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, mixed_batches, one_pass

PAIR = {"prompt": "Name?", "chosen": "吾輩は猫。", "rejected": "None<|plamo:eos|>."}
LIKED = {"prompt": "Name?", "completion": "吾輩は猫。", "label": True}
TURN = {"role": "user", "content": "Name?"}


def read(path, **fields):
    return list(read_pairs(path, ReadReport(**{"max_bad_rate": 0.0, "judge_after": 1} | fields)))


def answer(text):
    return {"role": "assistant", "content": text}


def test_the_forms_of_a_pair_are_one(write_lines):
    chosen, rejected = answer(PAIR["chosen"]), answer(PAIR["rejected"])
    records = [
        PAIR,
        {"prompt": [TURN], "chosen": chosen, "rejected": [rejected]},
        {"chosen": [TURN, chosen], "rejected": [TURN, rejected]},
    ]
    pairs = read(write_lines(records))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == 3 * [((TURN,), (chosen,), (rejected,))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ({"prompt": "x", "chosen": "y"}, "no pair .no value in the field rejected"),
        (PAIR | {"chosen": PAIR["rejected"]}, "identical answers"),
        (PAIR | {"rejected": ""}, "empty message .the field rejected"),
        (PAIR | {"prompt": " "}, "empty message .the field prompt"),
        (PAIR | {"chosen": [TURN]}, "chosen must begin and end with a message of the assistant"),
        ({"chosen": [TURN, answer("a")], "rejected": [{**TURN, "content": "other"}, answer("b")]}, "no prompt"),
        (PAIR | {"chosen": 3}, "must be a text, a message or a list"),
        (PAIR | {"prompt": [{"role": "eos", "content": "x"}]}, "unknown role"),
        (LIKED | {"label": 1}, "no label .the field label is 1; it must be true or false"),
        (LIKED | {"label": "true"}, "no label .the field label is 'true'"),
        ({"prompt": "x", "completion": "y"}, "no label .the field label is None"),
        (LIKED | {"completion": ""}, "empty message .the field completion"),
        (LIKED | {"completion": []}, "completion must begin and end with a message of the assistant"),
        (LIKED | {"completion": None}, "no answer .no value in the field completion"),
        (LIKED | {"prompt": None}, "no prompt .no value in the field prompt"),
        (LIKED | PAIR, "two forms .the field completion beside chosen and rejected"),
    ],
)
def test_bad_lines_are_named(write_lines, line, message):
    path = write_lines([PAIR, line, PAIR])
    with pytest.raises(TooManyBadRecordsError, match=rf"data.jsonl, line 2: .*{message}"):
        read(path)
    assert len(read(path, max_bad_rate=0.5, judge_after=1000)) == 2


def test_a_label_says_which_answer_of_a_pair_it_is(write_lines):
    # A table with columns for both forms has null in the other's.
    records = [LIKED | {"chosen": None, "rejected": None}, PAIR | {"completion": None, "label": None}]
    records += [LIKED | {"completion": [answer("None.")], "label": False, "style": "terse"}]
    liked, pair, disliked = read(write_lines(records))
    assert (liked.prompt, liked.chosen, liked.rejected) == (pair.prompt, pair.chosen, ())
    assert (disliked.chosen, disliked.rejected) == ((), (answer("None."),))
    assert (liked.variables, disliked.variables) == ({}, {"style": "terse"})
    assert [one.is_whole for one in (liked, pair, disliked)] == [False, True, False]


@pytest.mark.parametrize("side", [0, 1])
def test_a_single_answer_is_a_side_of_a_pair(tokenizer, template, side):
    whole, _ = encode_pair(to_pair(PAIR, "x"), template, tokenizer, 1000, "refuse")
    record = {"prompt": PAIR["prompt"], "completion": PAIR[("chosen", "rejected")[side]], "label": side == 0}
    single, what = encode_pair(to_pair(record, "x"), template, tokenizer, 1000, "refuse")
    assert what == "whole"
    assert single.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(single[name], array[whole["role"] == side], err_msg=name)
        assert single[name].dtype == array.dtype


def test_rows_mix_pairs_and_single_answers(tokenizer, template):
    records = [PAIR, LIKED, LIKED | {"completion": "犬", "label": False}]
    elements = [encode_pair(to_pair(record, "x"), template, tokenizer, 300, "refuse")[0] for record in records]
    config = DataConfig((MixtureItem("x"),), 300, 1, packing_bins=1, prefetch_batches=0)
    (batch,) = one_pass(config, Examples(elements), pair_collator(3, False))
    counted = batch["segment_ids"][0] * (batch["loss_weights"][0] > 0)
    # The places in the row are the packer's to choose; each holds what it is given.
    found = sorted(tuple(s for s in (1, 2) if np.any(counted == 2 * k + s)) for k in range(3))
    assert found == [(1,), (1, 2), (2,)]


def test_only_the_answers_count(tokenizer, template):
    history = [TURN, answer("None yet."), TURN]
    element, what = encode_pair(to_pair(PAIR | {"prompt": history}, "x"), template, tokenizer, 1000, "refuse")
    assert what == "whole"
    for side, text in ((0, PAIR["chosen"]), (1, PAIR["rejected"])):
        own = element["role"] == side
        counted = own & (element["weights"] > 0)
        assert tokenizer.decode(element["targets"][counted]) == text + "<|plamo:eos|>"
        assert element["positions"][own].tolist() == list(range(np.count_nonzero(own)))
        assert element["tokens"][own][0] == tokenizer.bos_id
        assert element["tokens"][own][1:].tolist() == element["targets"][own][:-1].tolist()


def test_long_pairs_lose_the_beginning_of_their_prompt(tokenizer, template):
    history = [{"role": "system", "content": "S" * 9}, TURN, answer("old" * 9), TURN]
    pair = to_pair(PAIR | {"prompt": history}, "x")
    whole, _ = encode_pair(pair, template, tokenizer, 1000, "first")
    length = len(whole["tokens"])
    shorter, what = encode_pair(pair, template, tokenizer, length - 1, "first")
    text = tokenizer.decode(shorter["tokens"])
    assert what == "truncated"
    assert "SSS" in text
    assert "oldold" not in text
    assert PAIR["chosen"] in text
    assert encode_pair(pair, template, tokenizer, length - 1, "refuse") == (None, "too long")
    assert encode_pair(pair, template, tokenizer, 30, "first") == (None, "too long")


def test_rows_hold_both_answers_of_every_pair(tokenizer, template):
    elements = []
    for i in range(12):
        pair = to_pair({"prompt": f"{i}?", "chosen": "x" * (i + 1), "rejected": "z" * (12 - i)}, "x")
        elements.append(encode_pair(pair, template, tokenizer, 200, "refuse")[0])
    config = DataConfig((MixtureItem("x"),), 200, 2, packing_bins=4, prefetch_batches=0)
    examples = Examples(elements)
    seen = []
    for batch in one_pass(config, examples, pair_collator(2, False)):
        for row in range(2):
            ids = batch["segment_ids"][row]
            assert ids.max() <= 4
            for k in range(1, ids.max() // 2 + 1):
                texts = [
                    tokenizer.decode(batch["targets"][row][(ids == s) & (batch["loss_weights"][row] > 0)])
                    for s in (2 * k - 1, 2 * k)
                ]
                seen.append(tuple(text.count(letter) for text, letter in zip(texts, "xz", strict=True)))
                for s in (2 * k - 1, 2 * k):
                    assert batch["positions"][row][ids == s].tolist() == list(range(np.count_nonzero(ids == s)))
    assert sorted(seen) == [(i + 1, 12 - i) for i in range(12)]

    # The iterator's state goes on where it was.
    iterator = mixed_batches(config, [examples], pair_collator(2, False))
    list(itertools.islice(iterator, 3))
    state, expected = iterator.get_state(), next(iterator)
    other = mixed_batches(config, [Examples(elements)], pair_collator(2, False))
    other.set_state(state)
    for name, array in next(other).items():
        np.testing.assert_array_equal(array, expected[name])


def test_examples_know_themselves_and_take_arrays_on(tokenizer, template):
    element, _ = encode_pair(to_pair(PAIR, "x"), template, tokenizer, 1000, "refuse")
    examples = Examples([element, element])
    assert examples.fingerprint == Examples([element, element]).fingerprint != Examples([element]).fingerprint
    more = examples.with_array("reference", np.arange(examples.targets, dtype=np.float32))
    assert more[1]["reference"][0] == len(element["tokens"])
    assert more.fingerprint != examples.fingerprint
    with pytest.raises(ValueError, match="1 values for"):
        examples.with_array("reference", np.zeros(1))
    with pytest.raises(ValueError, match="there is no example"):
        Examples([])
