# SPDX-License-Identifier: Apache-2.0
"""The judge against a server that behaves and misbehaves."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from bench.judge_server import GOOD, JudgeServer, answer

from egoedit_ros.bench.judge import ASKED_AGAIN, judge_item, judged_frames, read_grades
from egoedit_ros.bench.judge_client import TRIES, ChatClient, JudgeSettings
from egoedit_ros.errors import UserError

PAIRS = [(b"before", b"after"), (b"before 2", b"after 2"), (b"before 3", b"after 3")]
TEXT = "turn the mug blue"


def client(server, tmp_path, **more) -> ChatClient:
    more = {"key_variable": "", "first_wait_s": 0.01, "timeout_s": 5.0} | more
    return ChatClient(JudgeSettings(server.url, "a-judge", **more), tmp_path / "judge")


def misbehaving(*first: object):
    """Does these in turn, then behaves."""
    return lambda number, body: first[number] if number < len(first) else None


def test_a_good_judge_is_heard(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with JudgeServer(misbehaving()).running() as server:
        found = judge_item(client(server, tmp_path, key_variable="MY_KEY"), TEXT, PAIRS)
    assert found.values == {"vlm": 6, "vlm_prompt": 3, "vlm_quality": 2, "vlm_background": 1}
    assert (found.judged, found.asked, found.problems) == (3, 3, [])
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    body = server.requests[0]
    assert body["temperature"] == 0 and body["model"] == "a-judge"
    assert body["response_format"]["type"] == "json_schema"
    parts = body["messages"][1]["content"]
    assert TEXT in parts[0]["text"]
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    assert [base64.b64decode(u.partition(",")[2]) for u in urls] == [b"before", b"after"]


@pytest.mark.parametrize(
    "first",
    [429, 500, 503, b"cut", (429, {"Retry-After": "0.02"}), "not json", {"error": "odd"}, "[]"],
    ids=str,
)
def test_what_passes_is_tried_again(tmp_path, first):
    with JudgeServer(misbehaving(first, first)).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS[:1])
    assert found.values["vlm"] == 6 and not found.problems
    assert len(server.requests) == 3


def test_a_slow_judge_is_waited_for_so_long(tmp_path):
    with JudgeServer(misbehaving(), slow=0.6).running() as server:
        found = judge_item(client(server, tmp_path, timeout_s=0.1), TEXT, PAIRS[:1])
        assert found.values["vlm"] is None
        assert f"no answer after {TRIES} tries" in found.problems[0]
        assert "timed out" in found.problems[0]
        patient = judge_item(client(server, tmp_path, timeout_s=5.0), TEXT, PAIRS[:1])
        assert patient.values["vlm"] == 6


def test_nonsense_is_asked_again_in_other_words_then_reported(tmp_path):
    grade = json.dumps(GOOD | {"edit_quality": 9})
    with JudgeServer(lambda n, b: answer(("I like it.", grade)[n % 2])).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS[:1])
    assert len(server.requests) == ASKED_AGAIN
    assert "could not be read" in json.dumps(server.requests[1])
    assert found.values["vlm"] is None and not found.final
    assert "made no sense" in found.problems[0]
    with JudgeServer(misbehaving(answer("Hm."))).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS[:1])
    assert found.values["vlm"] == 6 and len(server.requests) == 2


def test_one_pair_that_cannot_be_judged_leaves_the_others(tmp_path):
    def behave(number, body):
        bad = base64.b64encode(PAIRS[1][0]).decode() in json.dumps(body)
        return answer("no") if bad else None

    with JudgeServer(behave).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS)
    assert found.values["vlm"] == 6 and (found.judged, found.asked) == (2, 3)
    assert found.problems[0].startswith("pair 1")


def test_nothing_is_paid_twice(tmp_path):
    with JudgeServer(misbehaving()).running() as server:
        first = judge_item(client(server, tmp_path), TEXT, PAIRS)
        again = client(server, tmp_path)
        assert judge_item(again, TEXT, PAIRS).values == first.values
        assert (len(server.requests), again.sent, again.cached) == (3, 0, 3)
        judge_item(again, "another instruction", PAIRS)
        assert len(server.requests) == 6


def test_a_damaged_cache_is_asked_anew(tmp_path):
    with JudgeServer(misbehaving()).running() as server:
        judge_item(client(server, tmp_path), TEXT, PAIRS[:1])
        (kept,) = (tmp_path / "judge").iterdir()
        kept.write_text("{")
        assert judge_item(client(server, tmp_path), TEXT, PAIRS[:1]).values["vlm"] == 6
        assert len(server.requests) == 2


def test_the_budget_counts_repeated_requests_and_half_items_get_no_score(tmp_path):
    with JudgeServer(misbehaving(500)).running() as server:
        asked = client(server, tmp_path, budget=3)
        found = judge_item(asked, TEXT, PAIRS)
    assert len(server.requests) == 3
    assert found.final and found.values["vlm"] is None
    assert "budget of 3 requests" in found.problems[0]


def test_no_more_requests_at_once_than_allowed(tmp_path):
    with JudgeServer(misbehaving(), slow=0.05).running() as server:
        one = client(server, tmp_path, concurrency=2)
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda i: judge_item(one, f"text {i}", PAIRS[:1]), range(6)))
    assert server.most_at_once == 2


def test_a_server_without_structured_answers_is_asked_plainly(tmp_path):
    def behave(number, body):
        return 400 if "response_format" in body else None

    with JudgeServer(behave).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS)
    assert found.values["vlm"] == 6
    assert len(server.requests) == 4


def test_a_refusal_ends_it_at_once(tmp_path):
    with JudgeServer(lambda n, b: 401).running() as server:
        found = judge_item(client(server, tmp_path), TEXT, PAIRS)
    assert len(server.requests) == 1
    assert found.final and "HTTP 401" in found.problems[0]


def test_no_network_ends_it(tmp_path):
    settings = JudgeSettings("http://127.0.0.1:9/v1", "a-judge", "", first_wait_s=0.001)
    found = judge_item(ChatClient(settings, tmp_path / "judge"), TEXT, PAIRS)
    assert found.final and "refused" in found.problems[0]


def test_without_a_key_the_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY"):
        ChatClient(JudgeSettings("http://localhost/v1", "m", "MY_KEY"), tmp_path)
    with pytest.raises(UserError, match="no address"):
        ChatClient(JudgeSettings("localhost:8000", "m", ""), tmp_path)


def test_grades_are_found_in_what_models_write():
    good = json.dumps(GOOD)
    assert read_grades(f"Let me see {{hm}}.\n```json\n{good}\n```")["edit_quality"] == 2
    assert read_grades(good.replace("3", "3.0"))["prompt_following"] == 3
    for wrong in ("", "{}", good.replace("3", "2.5"), good.replace("3", "true"),
                  good.replace("3", "-1"), good.replace("3", '"3"'), good.replace("3", "NaN"),
                  good.replace("3", "null")):  # fmt: skip
        with pytest.raises(ValueError):
            read_grades(wrong)


def test_every_third_part_of_the_frames():
    assert judged_frames(81) == [0, 27, 54]
    assert judged_frames(83) == [0, 27, 54, 81]
    assert judged_frames(2) == [0, 1]
