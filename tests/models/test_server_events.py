"""Server-sent events are read alike however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.models.server_events import MAX_EVENT_BYTES, EventParser, EventTooLong

STREAM = "data: one\n\n: comment\ndata:two\r\ndata: lines\r\n\r\nevent: x\nid: 3\n\ndata: 猫\r\rdata\n\ndata: [DONE]\n\ndata: cut"
EVENTS = ["one", "two\nlines", "猫", "", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM.encode()))))
def test_events_do_not_depend_on_the_cuts(places):
    content, parser, found = STREAM.encode(), EventParser(), []
    places = sorted({0, *places, len(content)})
    for start, end in itertools.pairwise(places):
        found += parser.push(content[start:end])
    assert found == EVENTS


def test_a_long_event_is_refused():
    parser = EventParser()
    parser.push(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))
    with pytest.raises(EventTooLong):
        parser.push(b"x")
    many = b"".join(b"data: %s\n" % (b"x" * 1000) for _ in range(MAX_EVENT_BYTES // 1000 + 2))
    with pytest.raises(EventTooLong):
        EventParser().push(many)
