# SPDX-License-Identifier: Apache-2.0
"""Asks a chat server (OpenAI-compatible): patient with it, thrifty with the money it costs."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from egoedit_ros.errors import UserError

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
TRIES = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
# Worth asking again: too fast, too slow, or broken for the moment.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class JudgeError(Exception):
    """No usable answer; the message says why. ``final``: asking for other items is no use."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """url: up to and with ``/v1``. key_variable: environment variable with the key, '' for none.

    budget: requests that may be sent in all, repeated ones too; None: as many as it takes.
    """

    url: str
    model: str
    key_variable: str = DEFAULT_KEY_VARIABLE
    concurrency: int = 4
    budget: int | None = None
    timeout_s: float = 120.0
    first_wait_s: float = FIRST_WAIT_S


class ChatClient:
    """Sends chat requests; answers to what was asked before come from ``cache``.

    Thread-safe. Raises UserError for settings that cannot work.
    """

    def __init__(self, settings: JudgeSettings, cache: Path) -> None:
        parts = urlparse(settings.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                f"{settings.url!r} is no address; give one like http://localhost:8000/v1"
            )
        self.settings = settings
        self.cache = cache
        self.sent = 0
        self.cached = 0
        self._key = ""
        if settings.key_variable:
            self._key = os.environ.get(settings.key_variable, "")
            if not self._key:
                raise UserError(
                    f"the judge needs an API key: set the environment variable "
                    f"{settings.key_variable}, name another with --judge-key-env, or give "
                    "--judge-key-env '' for a server that wants none"
                )
        self._lock = threading.Lock()
        self._places = threading.Semaphore(settings.concurrency)
        self._structured = True
        self._stopped = threading.Event()
        cache.mkdir(parents=True, exist_ok=True)

    def ask(self, body: dict, read: Callable[[str], dict], attempt: int = 0) -> dict:
        """What ``read`` makes of the answer to ``body``; remembered for the same body.

        read: raises ValueError for an answer that makes no sense, which is not remembered.
        """
        kept = self.cache / f"{self._name(body, attempt)}.json"
        try:
            found = read(json.loads(kept.read_text(encoding="utf-8"))["text"])
            with self._lock:
                self.cached += 1
            return found
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or not whole
        text = self._text(body)
        found = read(text)
        part = kept.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(json.dumps({"model": body.get("model"), "text": text}), encoding="utf-8")
        part.replace(kept)
        return found

    def stop(self) -> None:
        """Send no further request; those that wait to be sent again give up."""
        self._stopped.set()

    @staticmethod
    def _name(body: dict, attempt: int) -> str:
        whole = json.dumps([body, attempt], sort_keys=True).encode()
        return hashlib.sha256(whole).hexdigest()

    def _text(self, body: dict) -> str:
        """The words of the first choice of the answer."""
        last, wait = "", 0.0
        for number in range(TRIES):
            self._stopped.wait(wait)
            self._spend()
            structured = self._structured and "response_format" in body
            try:
                with self._places:
                    answer = self._post(body, structured)
                return _words(answer)
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode("utf-8", "replace")
                last = f"HTTP {error.code} {_short(said)}"
                if error.code in (400, 422) and structured:
                    # Not every server knows structured answers; the prompt asks for JSON as well.
                    self._structured = False
                    wait = 0.0
                    continue
                if error.code not in PASSING:
                    final = error.code in (401, 403, 404)
                    raise JudgeError(f"the judge refuses: {last}", final) from None
                wait = self._wait(number, error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # time-outs and cuts among them
                last = f"{type(error).__name__}: {_short(str(error))}"
                wait = self._wait(number)
            except ValueError as error:
                last = f"no JSON in the reply ({_short(str(error))})"
                wait = self._wait(number)
        unreachable = last.startswith(("URLError", "ConnectionRefusedError"))
        raise JudgeError(f"no answer after {TRIES} tries; the last: {last}", unreachable)

    def _spend(self) -> None:
        if self._stopped.is_set():
            raise JudgeError("stopped", True)
        with self._lock:
            budget = self.settings.budget
            if budget is not None and self.sent >= budget:
                raise JudgeError(f"the budget of {budget} requests is used up", True)
            self.sent += 1

    def _wait(self, number: int, asked: str | None = None) -> float:
        """Seconds: what the server asks for, else twice as long each time, never in step."""
        try:
            return min(LONGEST_WAIT_S, max(0.0, float(asked or "")))
        except ValueError:
            wait = self.settings.first_wait_s * 2**number
            return min(LONGEST_WAIT_S, wait) * random.uniform(0.75, 1.25)

    def _post(self, body: dict, structured: bool) -> dict:
        if not structured:
            body = {k: v for k, v in body.items() if k != "response_format"}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self.settings.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=self.settings.timeout_s) as reply:
            return json.loads(reply.read())


def _words(answer: object) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        raise ValueError("it has no choices[0].message.content") from None
    if isinstance(content, list):  # in parts
        content = "".join(p.get("text", "") for p in content if isinstance(p, dict))
    return content if isinstance(content, str) else ""


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
