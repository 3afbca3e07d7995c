"""Format: instructions about the form of an answer that a program can check.

Each row carries `check` {"kind", ...}: what the `format_check` grader verifies. The key is the instruction's content.
"""

from __future__ import annotations

import json
import random

from loopline.tasks.generators.config import GeneratorSettings
from loopline.tasks.generators.instance import Instance, Row, part_of, reply

# fmt: off
WORDS = (
    "lamp", "cup", "hat", "box", "key", "map", "pen", "ring", "rope", "ship", "shoe", "sock", "star",
    "tree", "wall", "bird", "boat", "book", "bowl", "cake", "clock", "coat", "door", "drum", "fish", "flag",
    "fork", "gate", "hand", "hill", "horse", "house", "jar", "king", "kite", "lake", "leaf", "moon", "nest",
    "night", "park", "plate", "pond", "river", "road", "rock", "roof", "rose", "sand", "seed", "snow", "song",
    "spoon", "stone", "stool", "storm", "table", "train", "wheel", "wind",
)
# fmt: on
KEYS = ("name", "colour", "item", "place", "word", "value")
SEPARATORS = {"spaces": " ", "commas": ", ", "dashes": "-"}


def _upper(rng: random.Random) -> tuple[str, str, Row]:
    a, b = rng.sample(WORDS, 2)
    return f"Write {a} {b} in upper case.", f"{a} {b}".upper(), {"kind": "upper", "text": f"{a} {b}"}


def _repeat(rng: random.Random) -> tuple[str, str, Row]:
    word, times, how = rng.choice(WORDS), rng.randint(2, 6), rng.choice(tuple(SEPARATORS))
    check = {"kind": "repeat", "word": word, "times": times, "separator": SEPARATORS[how]}
    return f"Write {word} {times} times with {how} between.", SEPARATORS[how].join([word] * times), check


def _list(rng: random.Random) -> tuple[str, str, Row]:
    words, is_sorted = rng.sample(WORDS, 3), rng.random() < 0.5
    if is_sorted:
        prompt = f"Sort {words[0]}, {words[1]} and {words[2]} by letter, with commas between."
        return prompt, ", ".join(sorted(words)), {"kind": "list", "words": sorted(words)}
    prompt = f"List {words[0]}, {words[1]} and {words[2]} in reverse, with commas between."
    return prompt, ", ".join(words[::-1]), {"kind": "list", "words": words[::-1]}


def _json(rng: random.Random) -> tuple[str, str, Row]:
    key, word = rng.choice(KEYS), rng.choice(WORDS)
    value: str | int = word if rng.random() < 0.7 else rng.randint(1, 99)
    check = {"kind": "json", "key": key, "value": value}
    return f"Answer in JSON with {key} set to {value}.", json.dumps({key: value}), check


def _end(rng: random.Random) -> tuple[str, str, Row]:
    about, word = rng.sample(WORDS, 2)
    verb = rng.choice(("is near", "is behind", "is not", "is like"))
    check = {"kind": "end", "about": about, "word": word, "min_words": 5, "max_words": 12}
    return f"Write one sentence on a {about} that ends with {word}.", f"The {about} {verb} the {word}.", check


KINDS = {"upper": _upper, "repeat": _repeat, "list": _list, "json": _json, "end": _end}


def format_key(check: Row) -> str:
    """Key of an instruction: its check, with words in sorted order so that a reordering is the same."""
    canonical = dict(check)
    if "words" in check:
        canonical["words"] = sorted(check["words"])
    if check["kind"] == "upper":
        canonical["text"] = sorted(check["text"].split())
    return "format|" + json.dumps(canonical, sort_keys=True)


def draw(rng: random.Random, part: str, config: GeneratorSettings) -> Instance | None:
    """One instance of the part, or None when this sample falls into another."""
    kind = rng.choice(tuple(KINDS))
    prompt, answer, check = KINDS[kind](rng)
    key = format_key(check)
    if part_of(key, config.heldout_percent) != part:
        return None
    return Instance(key, kind, prompt, answer, [reply("direct", answer)], {"check": check})
