"""An OpenAI-compatible server, over real HTTP, whose texts are a function of the request; its tokens are characters."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class AnsweringServer:
    """Answers chats, completions, and echoed prompts with log-probabilities.

    Args:
        answer: the text for a request's body.
        logprob: the log-probability of the last character of an echoed prompt, whose other characters have 0.
    """

    def __init__(self, answer, logprob):
        self.bodies, self._answer, self._logprob = [], answer, logprob
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                content = json.dumps(outer._response(body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _response(self, body):
        if body.get("echo"):
            return {"choices": [self._echo(i, prompt) for i, prompt in enumerate(body["prompt"])]}
        text = self._answer(body)
        place = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        return {"choices": [{"index": 0, **place, "finish_reason": "stop"}]}

    def _echo(self, index, prompt):
        logprobs = [None, *([0.0] * (len(prompt) - 2)), self._logprob(prompt), -1.0]
        top = [None if one is None else {"t": max(one, -1.0)} for one in logprobs]
        found = {"tokens": [*prompt, "x"], "token_logprobs": logprobs, "top_logprobs": top}
        return {"index": index, "text": f"{prompt}x", "logprobs": found, "finish_reason": "length"}


@contextlib.contextmanager
def answering_server(answer=None, logprob=None):
    """Run a server."""
    server = AnsweringServer(answer, logprob)
    try:
        yield server
    finally:
        server.close()
