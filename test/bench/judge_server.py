# SPDX-License-Identifier: Apache-2.0
"""A chat server for tests that does as it is told, mostly not well."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {
    "prompt_following": 3,
    "edit_quality": 2,
    "background_consistency": 1,
    "reason": "a good one",
}


def answer(text: str) -> dict:
    """A chat completion with these words."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


class JudgeServer:
    """``behave(number, request)`` says what to do with the n-th request (from 0).

    It returns a dict (200, as JSON), a str (200, as it is), an int or (int, headers) (an error),
    ``"cut"`` as bytes b"cut" to close the connection, or None for a good answer. ``slow`` delays
    every answer by so many seconds.
    """

    def __init__(self, behave: Callable[[int, dict], object], slow: float = 0.0) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers) | {"path": self.path})
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                time.sleep(slow)
                with outer._lock:  # before the client can know, and send the next one
                    outer.at_once -= 1
                self.reply(behave(number, body))

            def reply(self, what: object) -> None:
                if what == b"cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    return
                code, headers = (what, {}) if isinstance(what, int) else (200, {})
                if isinstance(what, tuple):
                    code, headers = what
                content = what if isinstance(what, (dict, str)) else answer(json.dumps(GOOD))
                text = content if isinstance(content, str) else json.dumps(content)
                data = b"no" if code != 200 else text.encode()
                try:
                    self.send_response(code)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:
                    pass  # the client did not wait

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @contextmanager
    def running(self) -> Iterator[JudgeServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
