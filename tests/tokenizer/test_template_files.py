"""Where a model's folder keeps its chat template, and what cannot be read."""

import json
import os

import pytest

from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from plamo2_jax.tokenizer.template_files import MAX_BYTES, chat_template_files, find_template

TEXT = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": TEXT}]


def put(folder, name, value):
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("value", [TEXT, NAMED, {"default": TEXT, "rag": "{{ documents }}"}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_inside_a_json_file(golden, tmp_path, file, value):
    put(tmp_path, file, {"tokenizer_class": "Plamo2Tokenizer", "chat_template": value})
    for template in (ChatTemplate.load(tmp_path), ChatTemplate.of_model(tmp_path)):
        assert template.source == TEXT
        assert template.marks_answers
        assert template.name == f"{tmp_path / file}, chat_template"
    assert chat_template_files(tmp_path) == {"chat_template.jinja": TEXT.encode()}


def test_the_file_of_its_own_counts_first(tmp_path):
    put(tmp_path, "chat_template.json", {"chat_template": "third"})
    assert find_template(tmp_path).source == "third"
    put(tmp_path, "tokenizer_config.json", {"chat_template": None})
    assert find_template(tmp_path).source == "third"
    put(tmp_path, "tokenizer_config.json", {"chat_template": ""})
    assert find_template(tmp_path).source == "third"
    put(tmp_path, "tokenizer_config.json", {"chat_template": "\ufeffsecond"})
    assert find_template(tmp_path).source == "second"
    # The others are not even read then.
    (tmp_path / "tokenizer_config.json").write_text("{")
    (tmp_path / "chat_template.jinja").write_text("first")
    assert find_template(tmp_path).source == "first"


def test_the_first_folder_that_has_a_template_gives_it(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    assert chat_template_files(tmp_path / "a", tmp_path / "b") == {}
    for name in "bc":
        (tmp_path / name / "chat_template.jinja").write_text(name)
    assert chat_template_files(*(tmp_path / name for name in "abc")) == {"chat_template.jinja": b"b"}
    assert ChatTemplate.of_model(tmp_path / "a").source == ChatTemplate.load("chat").source


def test_a_byte_order_mark_is_no_part_of_a_template_and_line_ends_do_not_matter(golden, tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xef\xbb\xbfa\r\n{{ messages[0].content }}\r\nb")
    chat = ChatTemplate.load(path).encode(golden, [{"role": "user", "content": "x\r\n"}])
    # What a template writes has LF; a message stays as it is.
    assert golden.decode(chat.ids) == "a\nx\r\n\nb"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"name": "tool_use", "template": "x"}], "no template named default, but only tool_use"),
        ([], "no template named default, but only none"),
        ([1], "must be a text or a list"),
        (3, "must be a text or a list"),
        ({"default": 3}, "must be a text or a list"),
        ("x" * (MAX_BYTES + 1), "too large"),
    ],
)
def test_a_json_file_without_a_usable_template_is_refused(tmp_path, value, message):
    put(tmp_path, "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(ChatTemplateError, match=rf"tokenizer_config.json: .*{message}"):
        find_template(tmp_path)


def text(path):
    path.write_bytes(b"\xff\xfe{\x00")


def link(path):
    (path.parents[1] / "private.txt").write_text("secret")
    path.symlink_to("../private.txt")


def large(path):
    path.write_bytes(b"x" * (MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "is not UTF-8"),
        (link, "is a symbolic link out of its folder"),
        (large, "too large"),
        (os.mkfifo, "a device, a pipe or a socket"),
        (os.mkdir, "is a folder"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(tmp_path, make, message):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder / "chat_template.jinja")
    for read in (find_template, chat_template_files, ChatTemplate.load, ChatTemplate.of_model):
        with pytest.raises(ChatTemplateError, match=message):
            read(folder)


def test_a_file_named_by_the_user_is_any_file_that_can_be_read(tmp_path):
    (tmp_path / "own.jinja").write_text(TEXT)
    (tmp_path / "linked.jinja").symlink_to("own.jinja")
    assert ChatTemplate.load(tmp_path / "linked.jinja").source == TEXT
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ChatTemplateError, match="is not a regular file"):
        ChatTemplate.load(tmp_path / "pipe")
    put(tmp_path, "tokenizer_config.json", {"chat_template": "{{ 1"})
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config.json, chat_template, line 1: "):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config.json is not valid JSON"):
        ChatTemplate.load(tmp_path)
