"""Outcomes come out of every form of log with their ids, scores and what is missing."""

import json
import zipfile

import pyarrow
import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl, write_text
from loopline.evaluation.logs import read_outcomes


def scores(outcomes, metric=None):
    return {(row.task_set, row.id): row.score for row in outcomes.rows if metric in (None, row.metric)}


def test_our_items(tmp_path):
    rows = [
        {"task": "math/1", "task_set": "math", "tags": [], "sample": 0, "mode": "greedy", "score": 1.0, "output": "4"},
        {"task": "math/2", "task_set": "math", "tags": [], "sample": 0, "mode": "greedy", "score": None, "output": ""},
        {"task": "math/1", "task_set": "math", "tags": [], "sample": 0, "mode": "sampled", "score": 0.5, "output": "5"},
    ]
    write_jsonl(tmp_path / "result" / "items.jsonl", rows)
    found = read_outcomes(str(tmp_path / "result"))
    assert found.form == "loopline" and found.rows == read_outcomes(str(tmp_path / "result" / "items.jsonl")).rows
    assert scores(found, "greedy") == {("math", "math/1"): 1.0, ("math", "math/2"): None}
    assert scores(found, "sampled") == {("math", "math/1"): 0.5}


def test_the_development_part_is_a_set_of_its_own(tmp_path):
    rows = [{"task": f"{part}/1", "task_set": "math", "part": part, "score": 1.0} for part in ("dev", "heldout")]
    write_jsonl(tmp_path / "items.jsonl", rows)
    assert set(scores(read_outcomes(str(tmp_path)))) == {("math [dev]", "dev/1"), ("math", "heldout/1")}


def artifact(run, node, score, finished):
    path = run / "store" / node / f"{finished:012d}"
    write_jsonl(path / "items.jsonl", [{"task": "a", "task_set": "t", "mode": "greedy", "score": score}])
    manifest = {"stage": node, "kind": "evaluation", "identity": "i", "digest": "d", "finished": finished}
    write_json(path / "artifact.json", manifest)


def test_a_run_directory_gives_its_evaluation_or_asks_which(tmp_path):
    artifact(tmp_path, "evaluate_sft", 0.0, 1)
    artifact(tmp_path, "evaluate_sft", 1.0, 2)
    assert scores(read_outcomes(str(tmp_path))) == {("t", "a"): 1.0}
    artifact(tmp_path, "evaluate_grpo", 0.0, 3)
    assert scores(read_outcomes(f"{tmp_path}:evaluate_grpo")) == {("t", "a"): 0.0}
    with pytest.raises(UserError, match=r"has 2 evaluations. Fix: name one: .*:evaluate_sft, .*:evaluate_grpo"):
        read_outcomes(str(tmp_path))
    with pytest.raises(UserError, match="no evaluation 'evaluate_dpo'"):
        read_outcomes(f"{tmp_path}:evaluate_dpo")


def lm_eval_row(doc, chosen="strict-match", **metrics):
    fields = {"doc": {"q": doc}, "target": "4", "arguments": {}, "resps": [["4"]], "filtered_resps": ["4"]}
    hashes = {"doc_hash": f"hash {doc}", "prompt_hash": "p", "target_hash": "t"}
    return {"doc_id": doc, **fields, **hashes, "filter": chosen, "metrics": list(metrics), **metrics}


DATE = "2026-05-01T12-00-00.123456"


def test_lm_eval_logs(tmp_path):
    rows = [lm_eval_row(0, exact_match=1.0), lm_eval_row(1, exact_match=0.0)]
    rows += [lm_eval_row(0, "flexible-extract", exact_match=1.0), lm_eval_row(1, "flexible-extract", exact_match=1.0)]
    write_jsonl(tmp_path / "model" / f"samples_gsm8k_cot_{DATE}.jsonl", rows)
    write_jsonl(
        tmp_path / "model" / f"samples_arc_{DATE}.jsonl",
        [lm_eval_row(7, "none", acc="True", acc_norm=0.0, word_perplexity=[-3.5, 4])],
    )
    write_json(tmp_path / "model" / f"results_{DATE}.json", {})
    found = read_outcomes(str(tmp_path))
    assert found.form == "lm-eval"
    assert scores(found, "exact_match,strict-match") == {("gsm8k_cot", "0"): 1.0, ("gsm8k_cot", "1"): 0.0}
    assert scores(found, "exact_match,flexible-extract") == {("gsm8k_cot", "0"): 1.0, ("gsm8k_cot", "1"): 1.0}
    assert scores(found, "acc") == {("arc", "7"): 1.0} and scores(found, "acc_norm") == {("arc", "7"): 0.0}
    assert {row.content for row in found.rows} == {"hash 0", "hash 1", "hash 7"}
    assert found.notes == ("arc: word_perplexity is no number per item and was left out",)


def test_the_newest_lm_eval_log_of_a_task_counts(tmp_path):
    for date, score in (("2026-05-01T12-00-00.1", 0.0), ("2026-06-01T12-00-00.1", 1.0)):
        write_jsonl(tmp_path / f"samples_arc_{date}.jsonl", [lm_eval_row(0, "none", acc=score)])
    found = read_outcomes(str(tmp_path))
    assert scores(found) == {("arc", "0"): 1.0} and "1 older" in found.notes[0]
    write_jsonl(tmp_path / "other" / f"samples_arc_{DATE}.jsonl", [lm_eval_row(0, "none", acc=1.0)])
    with pytest.raises(UserError, match="logs of 2 models"):
        read_outcomes(str(tmp_path))


def test_older_lm_eval_logs_without_a_list_of_metrics(tmp_path):
    row = lm_eval_row(0, acc=1.0)
    del row["metrics"]
    write_jsonl(tmp_path / "samples_arc.jsonl", [row])
    found = read_outcomes(str(tmp_path / "samples_arc.jsonl"))
    assert [(row.task_set, row.metric, row.score) for row in found.rows] == [("arc", "acc,strict-match", 1.0)]


def inspect_log():
    def sample(name, epoch, value):
        scorers = None if value is None else {"match": {"value": value, "answer": "4"}, "size": {"value": {"words": 3}}}
        return {"id": name, "epoch": epoch, "input": f"question {name}", "target": "4", "scores": scorers}

    samples = [sample(1, 1, "C"), sample(1, 2, "I"), sample("b", 1, "P"), sample("b", 2, 0.25), sample("c", 1, None)]
    samples.append(sample("d", 1, float("nan")))
    return {"version": 2, "status": "success", "eval": {"task": "sums", "model": "m"}, "samples": samples}


def write_inspect(path, log, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": log["eval"], "plan": {}}))
        for sample in log["samples"]:
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
        archive.writestr("summaries.json", "[]")
        if log["status"] == "success":
            archive.writestr("header.json", json.dumps({key: log[key] for key in ("version", "status", "eval")}))


def check_inspect(found):
    by_id = {}
    for row in found.rows:
        if row.metric == "match":
            by_id.setdefault(row.id, []).append(row.score)
    assert by_id == {"1": [1.0, 0.0], "b": [0.5, 0.25], "c": [None], "d": [None]}
    assert {row.score for row in found.rows if row.metric == "size/words"} == {3.0, None}
    assert {row.task_set for row in found.rows} == {"sums"} and found.form == "inspect"
    assert len({row.content for row in found.rows}) == 4


def test_inspect_logs_in_both_forms(tmp_path):
    write_text(tmp_path / "log.json", json.dumps(inspect_log()))
    write_inspect(tmp_path / "log.eval", inspect_log())
    check_inspect(read_outcomes(str(tmp_path / "log.json")))
    check_inspect(read_outcomes(str(tmp_path / "log.eval")))
    with pytest.raises(UserError, match="two evaluations of 'sums'"):
        read_outcomes(str(tmp_path))


def test_an_inspect_log_compressed_with_zstandard(tmp_path):
    # As Inspect writes them; the standard library before Python 3.14 cannot, so the compressed bytes are put in place.
    plain = tmp_path / "plain.eval"
    write_inspect(plain, inspect_log(), zipfile.ZIP_STORED)
    target = tmp_path / "log.eval"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        sizes = {}
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, pyarrow.Codec("zstd").compress(content, asbytes=True))
            sizes[name] = len(content)
        for info in archive.infolist():
            info.compress_type, info.file_size = 93, sizes[info.filename]
    check_inspect(read_outcomes(str(target)))


def test_an_inspect_log_that_was_cut_short_is_read_and_named(tmp_path):
    write_inspect(tmp_path / "log.eval", {**inspect_log(), "status": "cancelled"})
    found = read_outcomes(str(tmp_path / "log.eval"))
    check_inspect(found)
    assert "status started; the 6 samples it has were read" in found.notes[0]


def test_plain_rows(tmp_path):
    rows = [{"id": 1, "score": True}, {"id": "x", "score": 0.5, "task_set": "s", "cluster": "page 3"}]
    write_jsonl(tmp_path / "a.jsonl", [*rows, {"id": 2, "score": None}])
    found = read_outcomes(str(tmp_path / "a.jsonl"))
    assert scores(found) == {("items", "1"): 1.0, ("s", "x"): 0.5, ("items", "2"): None}
    assert [row.cluster for row in found.rows] == [None, "page 3", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "score": 1}\n{"id": 2}\n', "line 2: no 'id' or no 'score'"),
        ('{"id": 1, "score": 1}\n\n{"id": 2, "score": "good"}\n', "line 3: the score 'good' is no number"),
        ('{"id": 1, "score": NaN}\n', "line 1: the score nan is no number"),
        ('{"id": 1, "sco', "line 1: not JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        ("", "holds no outcome"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    write_text(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match=message):
        read_outcomes(str(tmp_path / "a.jsonl"))


def test_what_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no evaluation"):
        read_outcomes(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no evaluation"):
        read_outcomes(str(tmp_path))
    write_json(tmp_path / "settings.json", {"a": 1})
    with pytest.raises(UserError, match="not an Inspect log"):
        read_outcomes(str(tmp_path / "settings.json"))
    write_text(tmp_path / "log.eval", "no archive")
    with pytest.raises(UserError, match="not an Inspect log"):
        read_outcomes(str(tmp_path / "log.eval"))
