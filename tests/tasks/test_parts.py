"""The rows of one task set: demonstrations out of reference answers."""

from loopline.store.artifact import Artifact
from loopline.tasks.config import TaskSetConfig
from loopline.tasks.parts import read_set


def test_reference_answers_are_demonstrations_where_the_set_says_so(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": "2+2?", "answer": "4"}\n')
    inputs = {"sets.sums.file": Artifact(tmp_path / "sums.jsonl", "sums", "file", "x", "x")}
    for says, replies in ((False, [[], []]), (True, ["2", "4"])):
        config = TaskSetConfig(file="sums.jsonl", heldout=0.0, dev=0.0, demonstrate_answers=says)
        rows = read_set("sums", config, inputs, 0).rows["train"]
        found = [row["responses"] and row["responses"][0]["messages"][0]["content"] for row in rows]
        assert found == replies
