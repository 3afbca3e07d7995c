"""Talk to a served model with the `openai` package: a plain answer, a streamed one, feedback, and a tool call.

    loopline serve --model DIR --port 8000                  # a checkpoint or release directory
    .venv/bin/python examples/own_checkpoint/client.py --url http://127.0.0.1:8000

Needs the `openai` package (part of the development tools). The messages are recorded with consent, so the traffic loop
may learn from them. Not covered: running the tools the model asks for.
"""

from __future__ import annotations

import argparse

import httpx
from openai import OpenAI

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find documents about the query.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


def main(url: str, question: str) -> None:
    """One request of each kind."""
    client = OpenAI(base_url=f"{url}/v1", api_key="unused")
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=48,
        seed=0,
        metadata={"consent": "true", "conversation": "example"},
    )
    choice = answer.choices[0]
    print(f"{question}\n  thinking: {getattr(choice.message, 'reasoning_content', None)!r}")
    print(f"  answer:   {choice.message.content!r} ({choice.finish_reason}, {answer.usage})")

    feedback = httpx.post(f"{url}/v1/feedback", json={"id": answer.id, "name": "thumbs", "value": "up"})
    print(f"  feedback: {feedback.status_code}")

    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=48, stream=True
    )
    print("  streamed: ", end="")
    for chunk in stream:
        delta = chunk.choices[0].delta
        print(getattr(delta, "reasoning_content", None) or delta.content or "", end="", flush=True)
    print()

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What does the blue lamp cost?"}],
        tools=[SEARCH],
        temperature=0,
        max_tokens=48,
    )
    calls = answer.choices[0].message.tool_calls or []
    print(f"  tools:    {[(call.function.name, call.function.arguments) for call in calls]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Address of `loopline serve`.")
    parser.add_argument("--question", default="12+5-3=?", help="What to ask.")
    options = parser.parse_args()
    main(options.url, options.question)
