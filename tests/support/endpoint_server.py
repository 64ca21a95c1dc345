"""An OpenAI-compatible endpoint over real HTTP that fails, hangs or answers nonsense on request."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An OpenAI-compatible endpoint; `troubles` by the last message's text are what its next requests meet."""

    def __init__(self):
        self.requests, self.troubles, self.lock = [], {}, threading.Lock()
        self.free = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                with outer.lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    troubles = next((some for text, some in outer.troubles.items() if text in asked), [])
                    trouble = troubles.pop(0) if troubles else None
                outer.respond(self, trouble, body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self):
        self.free.set()
        self._server.shutdown()
        self._server.server_close()

    def drip(self, handler, where):
        """A byte every 0.1 s, for a minute."""
        status = "400 Bad Request" if where == "error" else "200 OK"
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 600\r\n\r\n"
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Wait: " if where == "head" else head.encode())
            for _ in range(600):
                if self.free.wait(0.1):
                    return
                handler.wfile.write(b"a")

    def respond(self, handler, trouble, body):
        if isinstance(trouble, str) and trouble.startswith("drip "):
            self.drip(handler, trouble.split()[1])
            return
        if isinstance(trouble, tuple):
            handler.wfile.write(trouble[0])
            handler.close_connection = True
            return
        if trouble == "hang":
            self.free.wait(30)
            return
        if trouble == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"{")
            handler.close_connection = True
            return
        if trouble == "redirect":
            handler.send_response(302)
            handler.send_header("Location", self.url.replace("127.0.0.1", "localhost"))
            handler.end_headers()
            return
        status, content = 200, json.dumps(self.answer(body)).encode()
        if isinstance(trouble, int):
            status = trouble
        elif trouble is not None:
            content = trouble
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def answer(self, body):
        if "prompt" in body:
            return {"choices": [{"text": f"{body['prompt']}の続き", "finish_reason": "length"}]}
        asked = body["messages"][-1]["content"]
        if "# 回答A" in asked:
            a, b = asked.split("# 回答A\n")[1].split("\n\n# 回答B\n")
            text = f"理由。[[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]"
        else:
            text = f"{asked}への答え" + "です。" * (1 + body.get("seed", 0) % 5)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"completion_tokens": len(text)}}
