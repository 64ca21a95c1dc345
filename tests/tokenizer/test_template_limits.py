"""Chat templates of others: whatever they do, one error in bounded time and memory, and the same text as in this process otherwise."""

import datetime
import re
import resource
import threading
import time

import pytest

from plamo2_jax.tokenizer.chat_template import BUILT_IN, ChatTemplate, ChatTemplateError
from plamo2_jax.tokenizer.template_process import ProcessTemplate
from plamo2_jax.tokenizer.template_sandbox import MEMORY_BYTES, SandboxedTemplate

ASK = {"role": "user", "content": "a"}

# On a busy machine, asking for much memory may take so long that the other limit comes first.
MEMORY = r"MiB of memory|CPU time"
NESTED = "{% set ns = namespace(x=[]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}"
BOMBS = {
    "constant power": ("{{ (3 ** (10 ** 9)) % 7 }}", "CPU time"),
    "constant text": ("{{ 'a' * 10**10 }}", MEMORY),
    "constant list": ("{{ [0] * 10**11 }}", MEMORY),
    "constant padding": ("{{ '%999999999d' % 1 }}", MEMORY),
    "constant digits": ("{{ 10 ** 5000 }}", "digits"),
    "nested parentheses": ("{{ " + "(" * 500 + "1" + ")" * 500 + "}}", "nests too deeply"),
    "nested statements": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "nests too deeply"),
    "nested loops": ("{% for i in [1] %}" * 25 + "{% endfor %}" * 25, "nested blocks"),
    "division": ("{{ 1 / 0 }}", "division"),
    "overflow": ("{{ '\t'.expandtabs(10**10) }}", "too large"),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "silent loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "CPU time"),
    "writing loops": ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "characters"),
    "doubling": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        MEMORY,
    ),
    "center": ("{{ messages[0].content | center(10**10) }}", MEMORY),
    "format": ("{{ '{:>{w}}'.format('a', w=10**10) }}", MEMORY),
    "format filter": ("{{ '%2000000000s' | format(messages[0].content) }}", MEMORY),
    "batch": ("{{ messages | batch(10**10, 0) | list | length }}", MEMORY),
    "replace": ("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", MEMORY),
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
    "recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "too deeply"),
    "nested value": (NESTED + "{{ ns.x }}", "too deeply"),
    "nested JSON": (NESTED + "{{ ns.x | tojson }}", "too deeply"),
    "include": ("{% include '/etc/passwd' %}", "loader"),
    "import": ("{% import '/etc/passwd' as x %}", "loader"),
    "attribute": ("{{ self.__init__.__globals__ }}", "unsafe"),
    "long refusal": ("{{ raise_exception('no ' * 10**6) }}", "no no"),
    "half a pair": ("{{ '\\ud800' }}", "surrogate"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_fails_with_one_sentence_in_time(golden, name):
    source, reason = BOMBS[name]
    begun = time.process_time(), time.monotonic()
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(source, "evil.jinja").encode(golden, [ASK])
    # The other process may use 1 s of CPU time. This machine may be busy, so the bound on waiting is wide.
    assert time.process_time() - begun[0] < 20
    assert time.monotonic() - begun[1] < 120
    message = str(caught.value)
    assert message.startswith("evil.jinja")
    assert re.search(reason, message)
    assert len(message) < 400
    assert "\n" not in message


def test_the_memory_of_the_process_is_limited_from_outside_too():
    template = ProcessTemplate("{{ x }}")
    assert resource.prlimit(template._process.pid, resource.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)
    assert template.render({"x": "a" * 10**7}) == "a" * 10**7


def test_a_conversation_that_fails_spoils_no_other(golden):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages[0].content == 'bomb' %}" + loop + "{% endif %}{{ messages[0].content }}")
    for content in ("bomb", "fine"):
        if content == "bomb":
            with pytest.raises(ChatTemplateError, match=r"CPU time, which is the limit"):
                template.encode(golden, [{"role": "user", "content": content}])
        else:
            assert golden.decode(template.encode(golden, [{"role": "user", "content": content}]).ids) == content


CONVERSATIONS = [
    [ASK],
    [{"role": "system", "content": "x\r\ny\x00"}, {"role": "user", "content": "吾輩は<|plamo:op|>😀 <"}],
    [
        ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, True, None, float("inf"), 10**40]}}}],
        },
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("source", [*BUILT_IN, "print"])
def test_both_ways_of_rendering_give_the_same(golden, messages, source):
    if source == "print":
        source = (
            "{{ messages }}{{ tools }}{{ day }}{% generation %}{{ messages | tojson(indent=1) }}{% endgeneration %}"
        )
    else:
        source = ChatTemplate.load(source).source
    here, there = ChatTemplate(source), ChatTemplate(source)
    here._template, there._template = SandboxedTemplate(source), ProcessTemplate(source)
    results = []
    for template in (here, there):
        try:
            chat = template.encode(golden, messages, tools=[{"name": "g<"}], day=datetime.date(2026, 1, 2))
            results.append((chat.ids.tolist(), chat.answer.tolist()))
        except ChatTemplateError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_only_templates_of_this_package_are_rendered_here():
    assert isinstance(ChatTemplate.load("chat")._template, SandboxedTemplate)
    # A run's folder holds a copy.
    assert isinstance(ChatTemplate(ChatTemplate.load("translate").source)._template, SandboxedTemplate)
    assert isinstance(ChatTemplate(ChatTemplate.load("chat").source + " ")._template, ProcessTemplate)


def test_threads_may_share_a_template(golden):
    template = ChatTemplate("{{ messages[0].content }}")
    wrong = []

    def work(number):
        for each in range(50):
            text = f"{number}-{each}" * 1000
            if golden.decode(template.encode(golden, [{"role": "user", "content": text}]).ids) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_process_ends_with_its_template_and_is_begun_anew_when_it_was_killed(golden):
    template = ChatTemplate("{{ messages[0].content }}")
    process = template._template._process
    process.kill()
    process.wait()
    assert golden.decode(template.encode(golden, [ASK]).ids) == "a"
    process = template._template._process
    assert process.poll() is None
    del template
    assert process.wait(timeout=30) is not None


def test_names_of_fields_are_no_control_either(golden):
    template = ChatTemplate("{{ messages[0] }}{{ tools | tojson }}")
    chat = template.encode(golden, [{"role": "user", "content": "a", "<|plamo:eos|>": 1}], tools=[{"<|plamo:op|>": 2}])
    assert not any(map(golden.is_special, chat.ids))
    assert golden.decode(chat.ids).endswith('[{"<|plamo:op|>": 2}]')


def test_a_conversations_own_variables_do_not_replace_the_templates(golden):
    template = ChatTemplate("{{ bos_token }}")
    with pytest.raises(ChatTemplateError, match="the variable bos_token is reserved for the template"):
        template.encode(golden, [ASK], bos_token="x")
    # Names of parameters are free.
    assert golden.decode(ChatTemplate("{{ tokenizer }}").encode(golden, [ASK], self="x", tokenizer="y").ids) == "y"
