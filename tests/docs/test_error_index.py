"""The error index holds every message of an error for users, and shows messages as users read them."""

import re
import runpy

import pytest

from support.documents import ROOT


@pytest.fixture(scope="module")
def index():
    return runpy.run_path(str(ROOT / "scripts" / "error_index.py"))


@pytest.fixture(scope="module")
def messages(index):
    return index["messages"]()


def test_no_message_is_left_out(index, messages):
    """A plain search finds as many places that raise one of the classes."""
    classes = index["error_classes"]()
    assert {"PlamoError", "ConvertError", "ImplementationError"} <= classes
    call = re.compile(rf"\braise (?:{'|'.join(classes)})\(")
    paths = [path for folder in index["SOURCES"].values() for path in folder.rglob("*.py")]
    raised = sum(len(call.findall(path.read_text(encoding="utf-8"))) for path in paths)
    assert len(messages) >= raised > 500


def test_messages_read_as_users_see_them(messages):
    texts = {message.text for message in messages}
    assert "the first argument must be a config file, such as *such\\_as*" in texts
    empty = [message for message in messages if not message.text]
    assert empty == []
