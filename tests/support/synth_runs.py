"""Small runs of `plamo2 synth` against the failing endpoint: a recipe with one request, thirty seeds, and a config."""

import json

import yaml

RECIPE = """
name: facts
version: "1"
language: ja
kind: text
source: fields
fields: [topic]
steps:
  - name: answer
    chat: ["{{ fields.topic }}について書いてください。"]
    max_new_tokens: 50
    parse: {name: passage}
drafts:
  - text: "{{ steps.answer }}"
"""


def write_inputs(folder):
    (folder / "facts.yaml").write_text(RECIPE, encoding="utf-8")
    lines = (json.dumps({"id": f"t{i}", "topic": f"話題{i}。", "language": "ja"}) + "\n" for i in range(30))
    (folder / "topics.jsonl").write_text("".join(lines))


def write_config(folder, server, output="out", generator=None, **changes):
    config = {
        "output": output,
        "seeds": {"fields": ["topics.jsonl"], "license": "CC0-1.0"},
        "recipes": [{"name": "facts.yaml"}],
        "generator": {
            "model": "m",
            "url": server.url,
            "license": "Apache-2.0",
            "timeout": 1.0,
            "max_retries": 1,
            "backoff": 0.01,
            "concurrency": 4,
            "price_completion": 1e6,
            **(generator or {}),
        },
        "filters": {"clean": None},
        # The answers of the server are all alike.
        "deduplicate": None,
        "unit_size": 8,
    }
    (folder / f"{output}.yaml").parent.mkdir(exist_ok=True)
    (folder / f"{output}.yaml").write_text(yaml.safe_dump(config | changes, allow_unicode=True), encoding="utf-8")
    return f"{output}.yaml"
