"""From the recorded traffic to `requests.jsonl`, the form in which the data stage reads it.

    rows = export_rows(records)                     # real traffic: oldest first, under its own ids
    rows = export_rows(records, rename=True)        # scripted traffic: ids and order from the conversations alone

Rows hold what was said, by which weights and harness, with exact tokens, and the feedback; no time, no latency, no
user. A row without consent keeps its place and nothing else. Not covered: scrubbing, labels, decontamination (the data
stage's traffic pass does them).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from loopline.base.config import sha256_of
from loopline.serve.records import Feedback, Records, Request

# Downstream reads whether feedback is positive from its name.
_THUMBS = {"up": "thumbs_up", "down": "thumbs_down", "1": "thumbs_up", "-1": "thumbs_down"}


def feedback_row(item: Feedback) -> dict[str, Any]:
    """One piece of feedback; thumbs become `thumbs_up` or `thumbs_down`."""
    if item.name == "thumbs":
        value = {True: "up", False: "down"}[item.value] if isinstance(item.value, bool) else str(item.value)
        return {"name": _THUMBS[value], "value": True}
    return {"name": item.name, "value": item.value}


def request_row(request: Request, name: str, feedback: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer."""
    sampling = {key: request.params[key] for key in ("temperature", "top_p", "top_k", "max_tokens", "seed")}
    return {
        "id": name,
        "conversation": request.conversation,
        "messages": request.input_messages,
        "response": request.output_message.get("text", ""),
        "finish": request.finish,
        "model": request.model,
        "weights": request.weights_version,
        "harness": request.harness_version,
        "tokens": request.usage["completion_tokens"],
        "prompt_token_ids": request.prompt_token_ids,
        "token_ids": request.token_ids,
        # Six digits: the last bits of a log-prob depend on the batch it was computed in.
        "logprobs": [round(value, 6) for value in request.logprobs],
        "sampling": sampling,
        "consent": request.consent,
        "feedback": feedback if request.consent else [],
    }


def export_rows(records: Records, rename: bool = False) -> list[dict[str, Any]]:
    """All answers with their feedback. `rename` orders by (conversation, turn) and numbers the ids in that order."""
    given: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in records.feedback():
        given[item.request_id].append(feedback_row(item))
    requests = records.requests()
    if rename:
        # Turns of a conversation grow its prompt, also where the content was not kept.
        requests.sort(key=lambda request: (request.conversation, request.usage["prompt_tokens"]))
        for rows in given.values():
            rows.sort(key=lambda row: (row["name"], str(row["value"])))
    return [
        request_row(request, f"request-{number:05d}" if rename else request.id, given[request.id])
        for number, request in enumerate(requests)
    ]


def traffic_digest(records: Records) -> str:
    """sha256 of everything an export would hold."""
    return sha256_of(export_rows(records))
