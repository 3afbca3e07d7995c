"""Instruction constraints: for every kind a text that follows it and one that does not."""

import pytest

from loopline.grading.grade import Sample
from loopline.grading.instructions import CHECKS, instructions
from loopline.tasks.task import Task

CASES = [
    ("keywords:existence", {"keywords": ["red", "blue"]}, "Red and blue.", "Reddish and blue."),
    ("keywords:forbidden_words", {"forbidden_words": ["red"]}, "Blue, reddish.", "It is red."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, go.", "Go on, gone."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Go on.", "Go, go."),
    ("keywords:letter_frequency", {"letter": "x", "let_frequency": 2, "let_relation": "at least"}, "X or x", "x"),
    ("language:response_language", {"language": "de"}, "Das ist ein Haus und der Hund schläft.", "This is a house."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "Two words", "Now three words"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two", "One is 3.14"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, 'This.\n\n"Then" that.', "Then.\n\nNow.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name] of [town]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP.S. Write soon.", "Hi.\nP.S."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n**two**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, "PART 1 PART 2", "PART 1"),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >>\nText"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\nOne"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, "So it goes. the end.", "The end. Or not"),
    ("startend:quotation", {}, '"All of it"', '"Some" of it'),
    ("change_case:english_capital", {}, "ALL OF IT", "Not all"),
    ("change_case:english_lowercase", {}, "all of it", "Not all"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG", "a BIG"),
    ("punctuation:no_comma", {}, "one two", "one, two"),
]  # fmt: skip


def grade(text, *given):
    messages = ({"role": "user", "content": "Say it."},)
    return instructions(
        Sample(Task(id="t", task_set="s", grader="g", messages=messages, item={"instructions": list(given)}), text)
    )


@pytest.mark.parametrize(("name", "settings", "good", "bad"), CASES)
def test_each_kind(name, settings, good, bad):
    assert grade(good, {"instruction": name, **settings}).score == 1
    assert grade(bad, {"instruction": name, **settings}).score == 0


def test_every_kind_is_tried():
    assert {case[0] for case in CASES} == set(CHECKS)


def test_all_must_be_followed_and_what_cannot_be_checked_is_no_zero():
    comma, lower = {"instruction": "punctuation:no_comma"}, {"instruction": "change_case:english_lowercase"}
    assert grade("all of it", comma, lower).score == 1
    found = grade("All of it", comma, lower)
    assert found.score == 0 and found.steps == (1.0, 0.0) and "english_lowercase" in found.evidence
    assert grade("x", {"instruction": "elsewhere:x"}).score is None
    assert grade("x", {"instruction": "length_constraints:number_words"}).score is None
    assert grade("x").score is None
