"""Rewards an answer that is one colour of the prompt's list, the one asked for, and nothing else.

A grader of one's own: `grade(sample, item)` gives a score from 0 to 1, or None where it cannot tell.
"""


def grade(sample: dict[str, str], item: dict[str, object]) -> float:
    answer = sample["output_text"].strip().rstrip(".").lower()
    return float(answer == str(item["answer"]).lower())
