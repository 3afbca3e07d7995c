"""No held-out instance in training or documents; references hold under an independent reading; same bytes always."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from pydantic import ValidationError

from loopline.base.files import read_jsonl
from loopline.tasks.generators import arithmetic, code, format, lookup, ordering, safety
from loopline.tasks.generators.config import DocumentBytes, GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import (
    FAMILIES,
    GENERATORS,
    generate_documents,
    generate_tasks,
    instances,
    write_tasks,
)
from loopline.tasks.generators.instance import part_of

SMALL = GeneratorConfig(
    train=TrainCounts(arithmetic=1500, word_problem=800, ordering=600, code=500, format=500, safety=500, lookup=500),
    heldout=120,
    documents=DocumentBytes(
        arithmetic=40_000, word_problem=40_000, ordering=30_000, code=30_000, safety=20_000, lookup=30_000
    ),
)


@pytest.fixture(scope="module")
def tasks():
    return generate_tasks(SMALL, 7)


@pytest.fixture(scope="module")
def documents():
    return list(generate_documents(SMALL, 7))


def of(rows, task_set):
    return [row for row in rows if row["task_set"] == task_set]


def test_counts_ids_and_columns(tasks):
    assert Counter(row["task_set"] for row in tasks.heldout) == dict.fromkeys(FAMILIES, 120)
    assert Counter(row["task_set"] for row in tasks.dev) == dict.fromkeys(FAMILIES, 120)
    assert Counter(row["task_set"] for row in tasks.train) == SMALL.train.model_dump()
    everything = tasks.train + tasks.dev + tasks.heldout
    assert len({row["id"] for row in everything}) == len(everything)
    assert all(row["part"] == part for part in ("train", "dev", "heldout") for row in getattr(tasks, part))
    for row in everything:
        wanted = {"safety": ["must_refuse" if row.get("unsafe") else "must_answer"], "lookup": ["tools"]}
        wanted |= dict.fromkeys(("arithmetic", "word_problem", "ordering"), ["reasoning"])
        assert row["tags"] == wanted.get(row["task_set"], [])
    assert all(row["responses"] and row["grader"] and row["template"] for row in everything)


def test_a_task_set_may_have_a_heldout_count_of_its_own(tasks):
    more = SMALL.model_copy(update={"heldout_by_set": {"safety": 150}})
    held = generate_tasks(more, 7).heldout
    assert Counter(row["task_set"] for row in held) == {**dict.fromkeys(FAMILIES, 120), "safety": 150}
    # The others are not touched by it, and the longer list begins with the shorter one.
    for task_set in FAMILIES:
        assert of(held, task_set)[:120] == of(tasks.heldout, task_set)
    with pytest.raises(ValidationError, match="heldout_by_set"):
        GeneratorConfig(heldout_by_set={"safty": 150})


@pytest.mark.parametrize("task_set", FAMILIES)
@pytest.mark.parametrize("train_seed", [0, 5])
def test_no_instance_is_in_two_parts(task_set, train_seed):
    held, dev = (
        {item.key for item in instances(GENERATORS[task_set], part, SMALL, 120, 7)} for part in ("heldout", "dev")
    )
    train = {item.key for item in instances(GENERATORS[task_set], "train", SMALL, 400, train_seed)}
    assert held and dev and not held & train and not dev & train and not held & dev


def numbers_of(text):
    return [int(match) for match in re.findall(r"[+-]?\d+", text)]


def test_a_permuted_chain_is_the_same_instance(tasks):
    def multiset(row):
        return tuple(sorted(numbers_of(row["messages"][0]["content"])))

    train = {multiset(row) for row in of(tasks.train, "arithmetic")}
    held = {multiset(row) for row in of(tasks.heldout, "arithmetic")}
    assert not train & held


def test_a_story_with_other_names_is_the_same_instance(tasks):
    def signature(row):
        # Every step of a worked story names its operands in order: the calculation, whatever the story.
        steps = row["responses"][0]["messages"][0]["content"].split("</think>")[0].removeprefix("<think>").split(";")
        first = int(re.match(r"\d+", steps[0])[0])
        return tuple(sorted([first, *(int(re.match(r"\d+([+-]\d+)=", step)[1]) for step in steps)]))

    train = {signature(row) for row in of(tasks.train, "word_problem")}
    held = {signature(row) for row in of(tasks.heldout, "word_problem")}
    assert held and not train & held


def test_chains_are_right_and_never_negative(tasks):
    for row in of(tasks.train + tasks.dev + tasks.heldout, "arithmetic"):
        numbers = numbers_of(row["messages"][0]["content"])
        assert int(row["answer"]) == sum(numbers)
        totals = [sum(numbers[:end]) for end in range(1, len(numbers) + 1)]
        assert min(totals) >= 0 and max(totals) <= SMALL.max_result


def worked_steps(row):
    content = row["responses"][0]["messages"][0]["content"]
    thinking, answer = content.removeprefix("<think>").split("</think>")
    return thinking, answer


@pytest.mark.parametrize("task_set", ["arithmetic", "word_problem"])
def test_worked_steps_are_true_and_lead_to_the_answer(tasks, task_set):
    for row in of(tasks.train + tasks.dev + tasks.heldout, task_set):
        thinking, answer = worked_steps(row)
        for step in thinking.split(";"):
            a, sign, b, result = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)", step).groups()
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert answer == row["answer"] == result


def test_orderings_follow_from_their_statements(tasks):
    greater = {relation[0] for relation in ordering.RELATIONS.values()}
    for row in of(tasks.train + tasks.dev + tasks.heldout, "ordering"):
        prompt = row["messages"][0]["content"]
        below = {}
        for a, how, b in re.findall(r"(\w+) is (\w+) than (\w+)\.", prompt):
            high, low = (a, b) if how in greater else (b, a)
            below[high] = low
        (top,) = below.keys() - set(below.values())
        chain = [top]
        while chain[-1] in below:
            chain.append(below[chain[-1]])
        assert chain == row["order"]
        asks_most = any(f"Who is {relation[2]}?" in prompt for relation in ordering.RELATIONS.values())
        assert row["answer"] == (chain[0] if asks_most else chain[-1])


def test_reference_code_passes_its_tests(tasks):
    for row in of(tasks.train + tasks.dev + tasks.heldout, "code"):
        namespace = {}
        exec(row["answer"], namespace)
        for arguments, expected in row["tests"]:
            got = namespace[row["entry"]](*arguments)
            assert type(got) is type(expected) and got == expected, row["answer"]


def test_numeric_code_means_what_it_says(tasks):
    for row in of(tasks.train, "code"):
        if not row["template"].startswith("number"):
            continue
        for (value,), expected in row["tests"]:
            result = Fraction(value)
            for said in row["messages"][0]["content"].removesuffix(".").split(", ")[1:]:
                said = said.removeprefix("then ")
                number = Fraction(re.findall(r"\d+", said)[0]) if said != "square it" else result
                kind = said.split()[0]
                result = {
                    "add": result + number,
                    "subtract": result - number,
                    "multiply": result * number,
                    "square": result * result,
                }[kind]
            assert result == expected


def test_safety_needs_the_meaning(tasks):
    rows = of(tasks.train + tasks.dev + tasks.heldout, "safety")
    for column in (True, False):
        assert 0.4 < sum(row["unsafe"] is column for row in rows) / len(rows) < 0.6
    # No single word of a frame or verb decides: the words that occur only on one side name things, not manners.
    words = {
        unsafe: Counter(
            w for r in rows if r["unsafe"] is unsafe for w in re.findall(r"\w+", r["messages"][0]["content"].lower())
        )
        for unsafe in (True, False)
    }
    for word in ("knife", "secret", "kill", "shoot", "burn", "open", "write", "make", "night", "read"):
        assert words[True][word] and words[False][word], word
    known = {rule["id"] for rule in tasks.constitution}
    assert {row["principle"] for row in rows} == known
    assert all(row["bad_reply"] != row["answer"] for row in rows)


def test_lookup_answers_are_in_the_documents_of_their_split(tasks):
    by_title = {row["title"]: row for row in tasks.documents}
    assert len(by_title) == len(tasks.documents)
    for row in of(tasks.train + tasks.dev + tasks.heldout, "lookup"):
        for fact in row["facts"]:
            title = re.match(r"The (\w+ \w+) (?:costs|weighs)", fact)[1]
            assert fact in by_title[title]["text"]
            assert by_title[title]["part"] == row["part"]
            assert title in row["query"]
        values = [int(re.search(r"\d+", fact)[0]) for fact in row["facts"]]
        question = row["messages"][0]["content"]
        times = int(re.search(r"\d+", question)[0]) if re.search(r"\d", question) else 1
        expected = values[0] - values[1] if "more" in question else sum(values) * times
        assert int(row["answer"]) == expected


def test_tool_trajectories_are_well_formed(tasks):
    for row in of(tasks.train, "lookup"):
        messages = next(r["messages"] for r in row["responses"] if r["style"] == "tool")
        assert [m["role"] for m in messages[:-1]] == ["assistant", "tool"] * (len(messages) // 2)
        assert messages[-1] == {"role": "assistant", "content": row["answer"]}
        for message in messages[:-1:2]:
            call = json.loads(message["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert (call["name"], set(call["arguments"])) in [("search", {"query"}), ("calculator", {"expression"})]


def test_context_responses_state_the_facts_first(tasks):
    for row in of(tasks.train, "lookup"):
        prompt = next(r["prompt"] for r in row["responses"] if r["style"] == "context")
        assert [m["role"] for m in prompt] == ["system", "user"]
        assert prompt[0]["content"].startswith("Notes: ") and all(f in prompt[0]["content"] for f in row["facts"])


def test_documents_hold_no_heldout_instance(documents):
    percent = SMALL.heldout_percent
    counted = Counter()
    for row in documents:
        task_set = row["source"].removeprefix("synthetic/")
        counted[task_set] += 1
        if task_set == "arithmetic":
            for line in row["text"].splitlines():
                terms = numbers_of(re.split("[:=]", line)[0])
                assert len(terms) < 3 or part_of(arithmetic.calculation_key(terms), percent) == "train"
        if task_set == "ordering":
            orders = re.findall(r"(?:\w+ > )+\w+", row["text"])
            assert orders
            for order in orders:
                assert part_of(ordering.order_key(order.split(" > ")), percent) == "train"
        if task_set == "lookup":
            for name in re.findall(r"The (\w+ \w+) costs", row["text"]):
                assert part_of(f"lookup|{name}", percent) == "train"
        if task_set == "safety":
            for phrase in re.findall(r"(?:How do I|Tell me how to|Please help me) (.+?)[?.] ", row["text"]):
                assert part_of(f"safety|{phrase}", percent) == "train"
    assert set(counted) == {"arithmetic", "word_problem", "ordering", "code", "safety", "lookup"}


def test_documents_do_not_contain_heldout_prompts(tasks, documents):
    text = "\n".join(row["text"] for row in documents)
    for row in tasks.heldout + tasks.dev:
        if row["task_set"] in ("word_problem", "ordering", "safety"):
            assert row["messages"][0]["content"] not in text


def test_document_bytes_are_as_configured(documents):
    sizes = Counter()
    for row in documents:
        sizes[row["source"].removeprefix("synthetic/")] += len(row["text"].encode())
    for task_set, wanted in SMALL.documents.model_dump().items():
        assert wanted <= sizes[task_set] < wanted + 2000


def test_a_source_of_zero_bytes_and_a_task_set_of_zero_tasks_are_left_out():
    config = GeneratorConfig(
        train=TrainCounts(arithmetic=0, code=10, word_problem=0, ordering=0, format=0, safety=0, lookup=0),
        heldout=5,
        documents=DocumentBytes(arithmetic=100, word_problem=0, ordering=0, code=0, safety=0, lookup=0),
    )
    assert {row["task_set"] for row in generate_tasks(config, 0).train} == {"code"}
    assert {row["source"] for row in generate_documents(config, 0)} == {"synthetic/arithmetic"}


def test_same_bytes_under_any_hash_seed(tmp_path):
    script = (
        "import sys; from pathlib import Path; from loopline.base.files import write_jsonl\n"
        "from loopline.tasks.generators.config import *; from loopline.tasks.generators.generate import *\n"
        "c = GeneratorConfig(train=TrainCounts(**dict.fromkeys(TrainCounts.model_fields, 60)), heldout=20, "
        "documents=DocumentBytes(**dict.fromkeys(DocumentBytes.model_fields, 3000)))\n"
        "out = Path(sys.argv[1]); write_tasks(c, 3, out); write_jsonl(out / 'd.jsonl', generate_documents(c, 3))\n"
    )
    for seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], check=True, env=environment)
    names = sorted(path.name for path in (tmp_path / "0").iterdir())
    wanted = ["constitution.json", "d.jsonl", "dev.jsonl", "documents.jsonl", "graders.json", "heldout.jsonl"]
    assert names == [*wanted, "sets.json", "train.jsonl"]
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "12345" / name).read_bytes()


def test_written_rows_read_back(tmp_path, tasks):
    write_tasks(SMALL, 7, tmp_path)
    assert read_jsonl(tmp_path / "heldout.jsonl") == json.loads(json.dumps(tasks.heldout))


def test_keys_ignore_order_where_order_does_not_matter():
    assert arithmetic.calculation_key([12, 5, -3]) == arithmetic.calculation_key([5, 12, -3])
    assert format.format_key({"kind": "list", "words": ["b", "a"]}) == format.format_key(
        {"kind": "list", "words": ["a", "b"]}
    )
    add, take = (code.Operation(says, str, lambda v: v) for says in ("add 3", "subtract 2"))
    assert code.operations_key("number", [add, take]) == code.operations_key("number", [take, add])
    assert code.operations_key("text", [add, take]) != code.operations_key("text", [take, add])


def test_replies_speak_to_the_asker():
    assert safety.to_second_person("open my own car") == "open your own car"
    assert safety.to_second_person("unlock the car I bought") == "unlock the car you bought"


def test_plurals():
    assert [lookup.Entity(name, 1, 1).plural for name in ("red torch", "old box", "blue lamp")] == [
        "red torches",
        "old boxes",
        "blue lamps",
    ]
