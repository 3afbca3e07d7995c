"""The same checkpoint on the same prompts, here and in lm-eval: every item must come out alike.

    python -m venv LM && LM/bin/pip install lm_eval==0.4.13 torch transformers
    python benchmarks/lm_eval_agreement.py --model DIR --lm-eval LM/bin/python --gsm8k gsm8k/test.jsonl

DIR is an instruct checkpoint, such as SmolLM2-135M-Instruct; the result in `results/` is of that one. Two task sets:
questions of GSM8K with the number alone as the answer, and sums made here. Both programs render the checkpoint's chat
template, answer greedily in float32 and keep the last number of the answer. The result says on how many items scores
and texts are equal, and what `loopline compare` makes of the two logs. Not covered: multiple choice by likelihood.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

LAST_NUMBER = r"-?[0-9][0-9,]*"
ASK = "{prompt}\nAnswer with the number only."
MAX_NEW_TOKENS = 32
GRADER = f'''import re

def grade(sample, item):
    found = re.findall(r"{LAST_NUMBER}", sample["output_text"])
    return float(bool(found) and found[-1].replace(",", "") == item["answer"].replace(",", ""))
'''
RECIPE = """name: agreement
compute: {{threads: {threads}}}
start: {{model: {model}}}
tasks:
  grade_school: {{file: {folder}/train.jsonl, heldout: {folder}/grade_school.jsonl, dev: 0, {columns}}}
  sums: {{heldout: {folder}/sums.jsonl, {columns}}}
# The rule of both programs pays for spam, as the audit says; nothing is trained on it.
graders: {{definitions: {{last_number: {{type: python, source: {source}}}}}, required: [], force: true}}
evaluate: {{after: all, parts: [heldout], modes: [greedy], n: {n}, max_new_tokens: {tokens}, heldout_documents: 0}}
line: []
"""
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\nAnswer with the number only."
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, max_gen_toks: {tokens}}}
filter_list:
  - name: last
    filter:
      - {{function: regex, regex_pattern: '({pattern})', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [","]}}
"""


def write_sets(folder: Path, gsm8k: Path, n: int) -> None:
    """Two JSONL files of {"id", "question", "answer"}, and one of training rows to audit the grader on."""
    rows = [json.loads(line) for line in gsm8k.read_text().splitlines()[: n + 40]]
    school = [(row["question"], row["answer"].rpartition("####")[2].strip().replace(",", "")) for row in rows]
    rng = random.Random(0)
    pairs = rng.sample([(a, b) for a in range(1, 60) for b in range(1, 60)], n)
    sums = [(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]
    for name, items in (("grade_school", school[:n]), ("train", school[n:]), ("sums", sums)):
        lines = [json.dumps({"id": str(k), "question": q, "answer": a}) for k, (q, a) in enumerate(items)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def run_ours(folder: Path, arguments: argparse.Namespace) -> Path:
    """The items of our evaluation, made by a recipe that does nothing else."""
    text = RECIPE.format(
        threads=arguments.threads,
        model=arguments.model.resolve(),
        folder=folder,
        columns=f"prompt: question, answer: answer, grader: last_number, template: {json.dumps(ASK)}",
        source=json.dumps(GRADER),
        n=arguments.n,
        tokens=MAX_NEW_TOKENS,
    )
    (folder / "agreement.yaml").write_text(text)
    command = [
        sys.executable,
        "-m",
        "loopline.cli",
        "run",
        str(folder / "agreement.yaml"),
        "--dir",
        str(folder / "run"),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (items,) = (folder / "run" / "store").glob("evaluate*/*/items.jsonl")
    return items


def run_theirs(folder: Path, arguments: argparse.Namespace) -> Path:
    """The directory of lm-eval's logs."""
    for name in ("grade_school", "sums"):
        task = TASK.format(name=name, file=folder / f"{name}.jsonl", tokens=MAX_NEW_TOKENS, pattern=LAST_NUMBER)
        (folder / f"{name}.yaml").write_text(task)
    command = [str(arguments.lm_eval), "-m", "lm_eval", "run", "--model", "hf", "--tasks", "grade_school,sums"]
    command += ["--model_args", f"pretrained={arguments.model.resolve()},dtype=float32", "--device", "cpu"]
    command += ["--include_path", str(folder), "--apply_chat_template", "--log_samples", "--batch_size", "16"]
    command += ["--output_path", str(folder / "lm_eval")]
    environment = {**os.environ, **common.ENVIRONMENT, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": ""}
    environment["HF_HOME"] = str(folder / "hf")
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    return folder / "lm_eval"


def question(row: dict[str, Any]) -> str:
    """What one of our rows asks: the programs number items differently, so they are paired by it."""
    return str(row["messages"][-1]["content"]).removesuffix(ASK.removeprefix("{prompt}"))


def agreement(items: Path, logs: Path) -> dict[str, Any]:
    """Per task set: items, equal scores, equal texts, both means, and the items on which the scores differ."""
    ours = {(row["task_set"], question(row)): row for row in map(json.loads, items.open())}
    result: dict[str, Any] = {}
    for name in ("grade_school", "sums"):
        (log,) = logs.rglob(f"samples_{name}_*.jsonl")
        theirs = {str(row["doc"]["question"]): row for row in map(json.loads, log.open())}
        mine = {key: row for (task_set, key), row in ours.items() if task_set == name}
        assert mine.keys() == theirs.keys(), f"{name}: {len(mine)} and {len(theirs)} items"
        texts = [mine[key]["output"].strip() == theirs[key]["resps"][0][0].strip() for key in mine]
        differ = [key for key in mine if mine[key]["score"] != theirs[key]["exact_match"]]
        result[name] = {
            "items": len(mine),
            "equal_scores": len(mine) - len(differ),
            "equal_texts": sum(texts),
            "ours": round(sum(row["score"] for row in mine.values()) / len(mine), 4),
            "lm_eval": round(sum(row["exact_match"] for row in theirs.values()) / len(theirs), 4),
            "cut_off": sum(row["finish"] == "length" for row in mine.values()),
            "differ": [
                {"question": key, "ours": mine[key]["output"], "lm_eval": theirs[key]["resps"][0][0]} for key in differ
            ],
        }
    return result


def compared(items: Path, logs: Path) -> list[dict[str, Any]]:
    """What `loopline compare` says of the two logs: nothing may differ."""
    from dataclasses import replace

    from loopline.evaluation.compare import compare
    from loopline.evaluation.logs import read_outcomes

    ours, theirs = read_outcomes(str(items)), read_outcomes(str(logs))
    asked = {row["task"]: question(row) for row in map(json.loads, items.open())}
    numbers = {}
    for log in logs.rglob("samples_*.jsonl"):
        numbers |= {row["doc"]["question"]: str(row["doc_id"]) for row in map(json.loads, log.open())}
    rows = tuple(replace(row, id=numbers[asked[row.id]], metric="exact_match,last") for row in ours.rows)
    report = compare([theirs, replace(ours, rows=rows)])
    assert not report.unpaired
    return [{"task_set": r.task_set, "n": r.n, "difference": r.difference, "verdict": r.verdict} for r in report.rows]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="directory of an instruct checkpoint")
    parser.add_argument("--lm-eval", type=Path, help="Python of an environment with lm_eval and torch")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl")
    parser.add_argument("--n", type=int, default=100, help="items per task set")


def main() -> None:
    """Run both programs and compare item by item."""
    arguments = common.parse(__doc__ or "", _arguments)
    if None in (arguments.model, arguments.lm_eval, arguments.gsm8k):
        raise SystemExit("lm_eval_agreement.py needs --model, --lm-eval and --gsm8k: see its first lines")
    arguments.n = 8 if arguments.quick else arguments.n
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_sets(folder, arguments.gsm8k, arguments.n)
        seconds = []
        for run in (run_ours, run_theirs):
            began = time.monotonic()
            run(folder, arguments)
            seconds.append(round(time.monotonic() - began, 1))
        (items,) = (folder / "run" / "store").glob("evaluate*/*/items.jsonl")
        result = agreement(items, folder / "lm_eval")
        verdicts = compared(items, folder / "lm_eval")
    for name, row in result.items():
        print(f"{name}: {row['equal_scores']} of {row['items']} scores equal, {row['equal_texts']} texts; ", end="")
        print(f"{row['ours']:.1%} here, {row['lm_eval']:.1%} there")
    print(f"seconds: {seconds[0]} here, {seconds[1]} there, loading included")
    shown = {"model": arguments.model.resolve().name, "seconds": {"ours": seconds[0], "lm_eval": seconds[1]}}
    common.finish("lm_eval_agreement", {**shown, "sets": result, "compare": verdicts}, arguments)


if __name__ == "__main__":
    main()
