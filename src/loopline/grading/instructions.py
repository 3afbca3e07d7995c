"""Instructions whose fulfilment a program can check, by the names and settings of IFEval (Zhou et al. 2023).

    follows("punctuation:no_comma", "a b c", {}, prompt)         # True

A task's `instructions` are [{"instruction": name, setting: value, ...}]; the grade is 1 when all are followed, its
steps say which are. Written from the paper's description: scores are not those of its own code to the last item. Not
covered: the loose variant, which forgives a first or last line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from loopline.grading.grade import Grade, Sample, split_thinking
from loopline.text.words import words_of

Settings = Mapping[str, Any]
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
LONGEST = 50_000


def compared(count: int, settings: Settings, wanted: str, relation: str = "relation") -> bool:
    """Whether a count is "at least" or "less than" what the settings ask for."""
    if settings.get(relation, "at least") == "less than":
        return bool(count < settings[wanted])
    return bool(count >= settings[wanted])


def occurrences(text: str, word: str) -> int:
    """How often a word or phrase occurs in a text, whole and in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def sentences(text: str) -> int:
    """Sentences of a text, by their closing punctuation; a last one may lack its own."""
    pieces = [piece for piece in SENTENCE_END.split(text) if piece.strip()]
    return len(pieces)


def paragraphs(text: str, mark: str = r"\s?\*\*\*\s?") -> list[str]:
    """The paragraphs between separators, an empty one at either edge left out."""
    parts = [part.strip() for part in re.split(mark, text)]
    if parts and not parts[0]:
        parts = parts[1:]
    return parts[:-1] if parts and not parts[-1] else parts


def language(text: str, settings: Settings) -> bool:
    """Whether a text is in a language (ISO 639-1)."""
    import py3langid

    return bool(py3langid.classify(text)[0] == settings["language"])


def is_json(text: str) -> bool:
    """Whether a text, in a code fence or not, is one JSON value."""
    text = text.strip()
    fenced = re.fullmatch(r"```(?:json|JSON|Json)?\s*\n?(.*?)\n?```", text, re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def nth_paragraph(text: str, settings: Settings) -> bool:
    """Whether there are so many paragraphs, and the n-th begins with a word."""
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    number = settings["nth_paragraph"]
    if len(parts) != settings["num_paragraphs"] or not 1 <= number <= len(parts):
        return False
    first = re.sub(r"^\W+|\W+$", "", parts[number - 1].split()[0])
    return first.lower() == str(settings["first_word"]).lower()


def repeats_prompt(text: str, settings: Settings, prompt: str) -> bool:
    """Whether an answer begins with the request it was to repeat, and goes on."""
    wanted = str(settings.get("prompt_to_repeat", prompt)).strip().lower()
    return text.strip().lower().startswith(wanted) and len(text.strip()) > len(wanted)


def two_responses(text: str) -> bool:
    """Whether there are two different answers between six asterisks."""
    parts = [part.strip() for part in text.split("******") if part.strip()]
    return len(parts) == 2 and parts[0] != parts[1]


def sections(text: str, settings: Settings) -> bool:
    """Whether there are so many sections, each opened by the splitter and a number."""
    mark = rf"\s?{re.escape(str(settings['section_spliter']))}\s?\d+\s?"
    return len(re.split(mark, text)) - 1 >= int(settings["num_sections"])


def highlights(text: str) -> int:
    """Parts in `*asterisks*` or `**two**` that hold something."""
    doubled = re.findall(r"\*\*([^\n*]+)\*\*", text)
    single = re.findall(r"(?<!\*)\*([^\n*]+)\*(?!\*)", text)
    return sum(bool(part.strip()) for part in (*doubled, *single))


Check = Callable[[str, Settings, str], bool]
CHECKS: dict[str, Check] = {
    "keywords:existence": lambda t, s, p: all(occurrences(t, word) for word in s["keywords"]),
    "keywords:forbidden_words": lambda t, s, p: not any(occurrences(t, word) for word in s["forbidden_words"]),
    "keywords:frequency": lambda t, s, p: compared(occurrences(t, s["keyword"]), s, "frequency"),
    "keywords:letter_frequency": lambda t, s, p: compared(
        t.lower().count(str(s["letter"]).lower()), s, "let_frequency", "let_relation"
    ),
    "language:response_language": lambda t, s, p: language(t, s),
    "length_constraints:number_words": lambda t, s, p: compared(len(words_of(t)), s, "num_words"),
    "length_constraints:number_sentences": lambda t, s, p: compared(sentences(t), s, "num_sentences"),
    "length_constraints:number_paragraphs": lambda t, s, p: (
        all(paragraphs(t)) and len(paragraphs(t)) == s["num_paragraphs"]
    ),
    "length_constraints:nth_paragraph_first_word": lambda t, s, p: nth_paragraph(t, s),
    "detectable_content:number_placeholders": lambda t, s, p: (
        len(re.findall(r"\[[^\[\]\n]+\]", t)) >= s["num_placeholders"]
    ),
    "detectable_content:postscript": lambda t, s, p: bool(
        re.search(rf"^\s*{re.escape(str(s['postscript_marker']))}.*\S", t, re.IGNORECASE | re.MULTILINE)
    ),
    "detectable_format:number_bullet_lists": lambda t, s, p: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", t, re.MULTILINE)) == s["num_bullets"]
    ),
    "detectable_format:number_highlighted_sections": lambda t, s, p: highlights(t) >= s["num_highlights"],
    "detectable_format:multiple_sections": lambda t, s, p: sections(t, s),
    "detectable_format:title": lambda t, s, p: bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", t)),
    "detectable_format:json_format": lambda t, s, p: is_json(t),
    "detectable_format:constrained_response": lambda t, s, p: any(
        answer in t for answer in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "combination:two_responses": lambda t, s, p: two_responses(t),
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": lambda t, s, p: t.strip().strip('"').lower().endswith(str(s["end_phrase"]).strip().lower()),
    "startend:quotation": lambda t, s, p: len(t.strip()) > 2 and t.strip()[0] == '"' == t.strip()[-1],
    "change_case:english_capital": lambda t, s, p: t.isupper(),
    "change_case:english_lowercase": lambda t, s, p: t.islower(),
    "change_case:capital_word_frequency": lambda t, s, p: compared(
        sum(word.isupper() for word in re.findall(r"[^\W_]+(?:['-][^\W_]+)*", t)), s,
        "capital_frequency", "capital_relation",
    ),
    "punctuation:no_comma": lambda t, s, p: "," not in t,
}  # fmt: skip


def follows(name: str, text: str, settings: Settings, prompt: str) -> bool:
    """Whether a text follows one instruction. Raises `KeyError` for an unknown one or a missing setting."""
    return bool(text.strip() and CHECKS[name](text, settings, prompt))


def instructions(sample: Sample) -> Grade:
    """1 when the answer follows every instruction of the task."""
    given = sample.task.item.get("instructions")
    answer = (split_thinking(sample.text)[1] or "")[:LONGEST]
    if not isinstance(given, list) or not given:
        return Grade(None, evidence="the task has no `instructions`", flags=("grader_failed",))
    scores = []
    for one in given:
        name = str(one.get("instruction"))
        if name not in CHECKS:
            return Grade(None, evidence=f"the instruction {name!r} is unknown", flags=("grader_failed",))
        try:
            scores.append(float(follows(name, answer, one, sample.task.prompt)))
        except (KeyError, TypeError) as error:
            return Grade(None, evidence=f"{name} lacks the setting {error}", flags=("grader_failed",))
    broken = [one["instruction"] for one, score in zip(given, scores, strict=True) if not score]
    evidence = f"{len(scores) - len(broken)} of {len(scores)} instructions followed"
    return Grade(float(not broken), tuple(scores), evidence + (f"; not {broken[0]}" if broken else ""))
