"""`loopline eval URL`: a scripted API that answers HumanEval with its canonical solutions is right 164 times of 164."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loopline.base.files import read_jsonl
from loopline.eval_recipe import EvalRequest, eval_recipe
from loopline.pipeline import run_line
from loopline.results import read_scores
from loopline.tasks.files import read_table
from tests.support import SHARED_DATA

HUMANEVAL = SHARED_DATA / "human-eval" / "HumanEval.jsonl.gz"


class Scripted(BaseHTTPRequestHandler):
    """An OpenAI-compatible API that knows the answers; each stands in a fence, with words around it."""

    answers: dict[str, str]
    asked: list[str]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        prompt = max((known for known in self.answers if known.strip() in text), key=len, default=None)
        reply = "I do not know." if prompt is None else f"Here it is:\n```python\n{prompt}{self.answers[prompt]}\n```\n"
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        found = {"id": "x", "object": "chat.completion", "model": "scripted", "choices": [choice], "usage": usage}
        payload = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        """Nothing on the terminal."""


@pytest.fixture
def server():
    """The API's URL and what it is asked; answers are put in by the test."""
    handler = type("Handler", (Scripted,), {"answers": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", handler
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not HUMANEVAL.exists(), reason="HumanEval is not here")
def test_canonical_solutions_served_by_an_endpoint_are_164_of_164(server, tmp_path):
    url, handler = server
    handler.answers |= {row["prompt"]: row["canonical_solution"] for row in read_table(HUMANEVAL).rows}
    request = EvalRequest(url, [f"humaneval={HUMANEVAL}"], tmp_path, endpoint_model="scripted", threads=1)
    done = run_line(eval_recipe(request), tmp_path)
    (row,) = [row for row in read_scores(tmp_path) if row["task"] == "humaneval"]
    assert (row["n"], row["value"], row["ungradable"]) == (164, 1.0, 0)
    assert len(read_jsonl(done["evaluate"] / "items.jsonl")) == len(handler.asked) == 164


def test_wrong_answers_of_an_endpoint_are_wrong_and_kept_by_item(server, tmp_path):
    url, handler = server
    handler.answers |= {"1+1?": "2"}
    rows = [{"prompt": "1+1?", "answer": "3"}, {"prompt": "5+5?", "answer": "10"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = EvalRequest(url, [str(tmp_path / "sums.jsonl")], tmp_path / "out", endpoint_model="m", threads=1)
    done = run_line(eval_recipe(EvalRequest(**{**vars(request), "grader": "final_answer"})), tmp_path / "out")
    assert [row["score"] for row in read_jsonl(done["evaluate"] / "items.jsonl")] == [0.0, 0.0]
