"""The chat of `plamo2 chat` on a folder: the engine's thread, and callers that leave."""

import itertools
import threading
import time

import pytest

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models.local_stream import LocalChatStream
from plamo2_jax.models.streaming import AnswerSettings

ASKED = [{"role": "user", "content": "吾輩は猫である。"}]
SETTINGS = AnswerSettings(SamplingConfig(temperature=0), StopConfig(24))


@pytest.fixture
def stream(model):
    with LocalChatStream(model.generator, model.template, "tiny", max_length=256) as stream:
        yield stream


def test_a_caller_can_leave_during_a_compilation(stream, monkeypatch):
    scheduler = stream._scheduler
    run_round, compiled = scheduler.run_round, threading.Event()

    def slow():
        # The program that XLA compiles in the first round cannot be interrupted.
        assert compiled.wait(240)
        return run_round()

    monkeypatch.setattr(scheduler, "run_round", slow)
    pieces = stream.answer(ASKED, SETTINGS)
    begun = time.monotonic()
    assert [piece.text for piece in itertools.islice(pieces, 3)] == ["", "", ""]
    pieces.close()
    assert time.monotonic() - begun < 120
    compiled.set()
    text = [piece.text for piece in stream.answer(ASKED, SETTINGS)]
    assert "".join(text)
    assert not scheduler.busy
    # The answer that nobody waited for has left no trace.
    assert "".join(piece.text for piece in stream.answer(ASKED, SETTINGS)) == "".join(text)


def test_drafts_do_not_change_an_answer(stream, model):
    """Greedy text of this model repeats, so drafts are kept."""
    *_, last = pieces = list(stream.answer(ASKED, SETTINGS))
    prompt = model.template.encode(model.tokenizer, ASKED, add_generation_prompt=True).ids
    (plain,) = model.generator.generate([prompt], sampling=SETTINGS.sampling, stop=StopConfig(24, ids=stream._stop_ids))
    assert "".join(piece.text for piece in pieces) == plain.text
    assert last.usage.completion_tokens == len(plain.token_ids)
    assert stream._scheduler.kept > 0
