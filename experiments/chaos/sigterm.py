"""Real SIGTERMs: `plamo2 serve` processes that are stopped under load at random moments, and what their clients got.

A process that has imported everything forks for each signal, and the child runs the command `plamo2 serve`. Programs are compiled once, by
the first server. 16 clients send one request after the other, half of them streamed, until the server refuses. The signal comes 0 to 1 s
after the first answer; every tenth server gets a second one. `--first` and `--signals` run a part of all servers.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from serve import HEADERS, LENGTH, SIZE, SLOTS, answer_of, make_body

CLIENTS = 16
WRITE = """
import sys
from pathlib import Path
import jax
from serve import make_model
from plamo2_jax import checkpoint
model, params, tokenizer = make_model()
checkpoint.save_model(Path(sys.argv[1]), model.config, params, tokenizer)
"""


class Served:
    """A `plamo2 serve` process."""

    def __init__(self, folder: Path, shutdown_timeout: float):
        arguments = ["serve", str(folder), "--port", "0", "--slots", str(SLOTS), "--max-length", str(LENGTH)]
        arguments += ["--prefill-size", str(SIZE), "--shutdown-timeout", str(shutdown_timeout)]
        read, write = os.pipe()
        self.process = os.fork()
        if not self.process:
            _become_server(arguments, write)
        os.close(write)
        self._errors = os.fdopen(read)
        said = []
        for line in self._errors:
            said.append(line)
            if found := re.search(r"http://([\d.]+):(\d+) serves", line):
                self.address = found[1], int(found[2])
                return
        raise SystemExit("the server ended: " + "".join(said))

    def stop(self) -> None:
        """Send SIGTERM."""
        os.kill(self.process, signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit code; a process that does not end within 60 s is killed."""
        kill = threading.Timer(60, os.kill, (self.process, signal.SIGKILL))
        kill.start()
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        finally:
            kill.cancel()
        said = self._errors.read()
        self._errors.close()
        return code if "Traceback" not in said else 1


def _become_server(arguments: list[str], errors: int) -> None:
    """Run the command in this process, and end it."""
    from plamo2_jax.cli.main import main

    code = 1
    try:
        os.dup2(errors, 2)
        code = main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code or 0)


def ask_until_refused(served: Served, rng: random.Random, answered: threading.Event) -> Iterator[str]:
    """Send requests, and yield how each ended: a finish reason, "503", "refused" (no connection), "no response" or "cut: ..."."""
    while True:
        body = {**make_body(rng), "max_tokens": rng.randrange(1, 180), "stop": None}
        connection = http.client.HTTPConnection(*served.address, timeout=120)
        response = None
        try:
            try:
                connection.connect()
            except OSError:
                yield "refused"
                return
            try:
                connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
                response = connection.getresponse()
            except (http.client.HTTPException, OSError):
                # The connection was closed before the first byte of a response.
                yield "no response"
                return
            if response.status == 503:
                assert "error" in json.loads(response.read())
                yield "503"
                return
            reason = answer_of(response, body["stream"])[2]
            answered.set()
            yield str(reason) if reason else "cut: no finish reason"
        except (AssertionError, ValueError, http.client.HTTPException, OSError) as error:
            yield f"cut: {error!r}"[:300]
            return
        finally:
            connection.close()


def one_server(folder: Path, number: int) -> tuple[collections.Counter[str], int]:
    """Start, load and stop a server; return how its answers ended, and its exit code."""
    rng = random.Random(number)
    served, answered = Served(folder, rng.choice([0.0, 0.05, 10.0])), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [
            pool.submit(lambda seed: list(ask_until_refused(served, random.Random(seed), answered)), rng.random())
            for _ in range(CLIENTS)
        ]
        answered.wait(60)
        time.sleep(rng.random())
        served.stop()
        if number % 10 == 0:
            time.sleep(0.02)
            served.stop()
        reasons = collections.Counter(reason for each in asked for reason in each.result())
    return reasons, served.wait()


def main() -> None:
    """Run the servers and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first server")
    parser.add_argument("--signals", type=int, default=100, help="number of servers")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("sigterm.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "os.fork")
    # Children inherit what is imported. No thread of JAX runs before a computation.
    import plamo2_jax.cli.serve
    import plamo2_jax.serve.opening
    import plamo2_jax.serve.server  # noqa: F401

    results = json.loads(options.output.read_text()) if options.first else {"signals": 0, "seconds": 0.0}
    reasons, codes = (collections.Counter(results.get(name, {})) for name in ("answers", "exit_codes"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "m"
        subprocess.run([sys.executable, "-c", WRITE, folder], check=True, cwd=Path(__file__).parent)
        jax.config.update("jax_compilation_cache_dir", str(Path(work) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for number in range(options.first, options.first + options.signals):
            begun = time.monotonic()
            found, code = one_server(folder, number)
            reasons += found
            codes[str(code)] += 1
            results = {
                "signals": results["signals"] + 1,
                "answers": dict(reasons),
                "cut": sum(count for reason, count in reasons.items() if reason.startswith("cut")),
                "exit_codes": dict(codes),
                "seconds": round(results["seconds"] + time.monotonic() - begun, 1),
            }
            options.output.write_text(json.dumps(results, indent=1) + "\n")
            print(number, dict(found), code, flush=True)
    print(json.dumps(results))
    assert not results["cut"]
    assert set(results["exit_codes"]) == {"0"}


if __name__ == "__main__":
    main()
