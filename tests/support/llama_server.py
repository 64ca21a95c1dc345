"""The server of llama.cpp on a GGUF file, in its own process, which is killed after a limit: its loader can hang on a bad file."""

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import urllib.request

LIMIT_S = 300


@contextlib.contextmanager
def llama_server(path, context=1024):
    """Yield a function `ask(endpoint, **fields)` that posts JSON and returns the answer.

    Keys and values are cached in float32, and one sequence runs at a time: llama.cpp fails an assertion with several PLaMo 2 sequences.
    """
    command = ["timeout", "-s", "KILL", str(LIMIT_S), sys.executable, __file__, str(path), str(context)]
    with tempfile.TemporaryFile("w+") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, **pipes, text=True)
        try:
            address = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
            if address is None:
                log.seek(0)
                raise AssertionError(f"llama.cpp did not start: {log.read()[-2000:]}")
            yield functools.partial(_ask, address)
        finally:
            # `timeout` passes this signal on.
            process.terminate()
            process.communicate()


def _ask(address, endpoint, **fields):
    body = json.dumps(fields).encode()
    request = urllib.request.Request(f"{address}/{endpoint}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return json.load(answer)


def serve(path, context):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = context, 1, 1024, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Its flash attention is less exact: log-probabilities differ by up to 1e-3.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    # The end of the input is the end of the process that asked.
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
