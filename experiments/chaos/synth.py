"""Kill `plamo2 synth` at random moments, and compare its files with those of an undisturbed run.

python experiments/chaos/synth.py --kills 100 --output experiments/chaos/synth.json

A server in this process answers after a random delay and counts requests. Two workers share the units from time to time.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
CONCURRENCY = 4


class Counting:
    """A server that counts how often each prompt is asked."""

    def __init__(self) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                outer.asked[text] += 1
                time.sleep(random.uniform(0.0, 0.1))
                said = {"role": "assistant", "content": f"{text}への答えです。"}
                choice = {"message": said, "finish_reason": "stop"}
                content = json.dumps(
                    {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
                ).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # The client was killed.

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"


def files(folder: Path) -> dict[str, bytes]:
    """Return the files that must not depend on interruptions."""
    paths = [
        *folder.glob("plan/*"),
        *folder.glob("units/*/done.jsonl"),
        *folder.glob("records/*"),
        folder / "report.json",
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def main() -> None:
    """Run, kill, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    server, rng = Counting(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "facts.yaml").write_text(RECIPE, encoding="utf-8")
        lines = (
            json.dumps({"id": f"t{i}", "topic": f"話題{i}", "language": "ja"}) + "\n" for i in range(options.entries)
        )
        (folder / "topics.jsonl").write_text("".join(lines))
        config = {
            "seeds": {"fields": [str(folder / "topics.jsonl")], "license": "CC0-1.0"},
            "recipes": [{"name": str(folder / "facts.yaml")}],
            "generator": {"model": "m", "url": server.url, "license": "Apache-2.0", "concurrency": CONCURRENCY},
            "filters": {"clean": None},
            "deduplicate": None,
            "gates": {"min_records": 10**9},
        }
        command = [sys.executable, "-m", "plamo2_jax.cli.main", "synth"]
        for run in ("whole", "killed"):
            (folder / f"{run}.yaml").write_text(yaml.safe_dump(config | {"output": str(folder / run / "out")}))
        subprocess.run(
            [*command, folder / "whole.yaml"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert set(server.asked.values()) == {1}
        server.asked.clear()
        start, kills, processes = time.monotonic(), 0, 0
        while True:
            workers = [[*command, folder / "killed.yaml"]]
            if rng.random() < 0.3:
                workers.append([*command, folder / "killed.yaml", "--worker"])
            running = [subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for one in workers]
            processes += len(running)
            if kills < options.kills:
                time.sleep(rng.uniform(0.2, 3.0))
                for process in running:
                    if process.poll() is None:
                        process.send_signal(signal.SIGKILL)
                        kills += 1
                    process.wait()
                continue
            codes = [process.wait() for process in running]
            break
        repeated = sum(count - 1 for count in server.asked.values())
        one, other = files(folder / "whole" / "out"), files(folder / "killed" / "out")
        result = {
            "kills": kills,
            "processes": processes,
            "exit_statuses": codes,
            "entries": options.entries,
            "files": len(one),
            "files_that_differ": sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path)),
            "requests_repeated": repeated,
            "requests_repeated_at_most": kills * CONCURRENCY,
            "seconds": round(time.monotonic() - start, 1),
        }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["files_that_differ"] or repeated > kills * CONCURRENCY or any(codes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
