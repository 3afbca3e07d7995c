"""The three stages end to end on real text: formats, promises, and equal bytes in every process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_jsonl
from loopline.chat.tokenizer import Tokenizer
from loopline.corpus.config import DataConfig, RawConfig, TrafficDataConfig
from loopline.corpus.decontaminate import heldout_index
from loopline.corpus.document import read_documents
from loopline.corpus.stage import data, raw, traffic_data
from loopline.tasks.generators.config import GeneratorConfig
from loopline.tasks.generators.generate import write_tasks
from loopline.training.shards import ShardSet
from tests.support import make_artifact, make_context

GENERATORS = {
    "train": {
        "arithmetic": 300,
        "word_problem": 200,
        "ordering": 150,
        "code": 200,
        "format": 50,
        "safety": 100,
        "lookup": 100,
    },
    "heldout": 40,
    "documents": {
        "arithmetic": 40_000,
        "word_problem": 40_000,
        "ordering": 20_000,
        "code": 40_000,
        "safety": 10_000,
        "lookup": 20_000,
    },
}
RAW = {
    "python": {"code_megabytes": 0.3, "docstring_megabytes": 0.3, "readme_megabytes": 0.1, "licence_megabytes": 0.05},
    "synthetic": {"documents": GENERATORS["documents"]},
}
DATA = {"tokenizer": {"vocab_size": 400, "train_megabytes": 0.5}}


def build(root: Path) -> None:
    """The raw, tasks and data stages under `root`."""
    context = make_context(root / "1")
    raw(RawConfig.model_validate(RAW), {}, context)
    tasks_context = make_context(root / "2")
    write_tasks(GeneratorConfig.model_validate(GENERATORS), 0, tasks_context.out)
    inputs = {"raw": make_artifact(context.out), "tasks": make_artifact(tasks_context.out)}
    data_context = make_context(root / "3")
    data(DataConfig.model_validate(DATA), inputs, data_context)
    for name, made in (("raw", context), ("tasks", tasks_context), ("data", data_context)):
        (root / name).symlink_to(made.out)


def digests(root: Path) -> dict[str, str]:
    found = {}
    for name in ("raw", "tasks", "data"):
        for path in sorted((root / name).rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and "log" not in relative.parts and path.name != "artifact.json":
                found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    build(root)
    return root


def test_raw_holds_every_source_with_its_licence(built):
    documents = read_documents(built / "raw" / "documents.parquet")
    counts = read_json(built / "raw" / "sources.json")
    assert {document.source for document in documents} == set(counts)
    assert {"python/code", "python/docstrings", "synthetic/arithmetic", "synthetic/code"} <= set(counts)
    assert all(document.licence for document in documents)
    assert len({document.id for document in documents}) == len(documents)


def test_shards_decode_to_documents_that_hold_no_held_out_task(built):
    manifest = read_json(built / "data" / "manifest.json")
    shards = ShardSet(built / "data")
    tokenizer = Tokenizer.load(built / "data" / "tokenizer")
    index = heldout_index(built / "tasks", DataConfig().decontamination)
    assert tokenizer.vocab_size == manifest["vocab_size"] == 400
    assert sum(entry["weight"] for entry in manifest["sources"].values()) == pytest.approx(1)
    natural = sum(entry["weight"] for name, entry in manifest["sources"].items() if name.startswith("python"))
    assert natural == pytest.approx(0.5)
    for source, entry in manifest["sources"].items():
        for split in ("train", "heldout"):
            text = tokenizer.decode(shards.tokens(source, split).tolist())
            documents = text.split("<|end|>")[:-1]
            assert len(documents) == entry[f"{split}_documents"]
            assert sum(len(document.encode()) for document in documents) == entry[f"{split}_bytes"]
            if split == "train":
                assert index.find(documents, whole_only=source.startswith("synthetic/")) == []
        assert entry["heldout_tokens"] > 0, source
    assert shards.batch(0, 4, 64).shape == (4, 65)


def test_the_funnel_table_adds_up_and_shows_no_address(built):
    rows = read_json(built / "data" / "funnel.json")
    manifest = read_json(built / "data" / "manifest.json")
    assert [row["step"] for row in rows] == [
        "normalize", "licence", "language", "quality", "personal data", "exact duplicates", "repeated passages",
        "near duplicates", "decontaminate", "validation",
    ]  # fmt: skip
    for row, after in zip(rows, rows[1:], strict=False):
        assert (row["documents_out"], row["bytes_out"]) == (after["documents_in"], after["bytes_in"])
    kept = sum(e["train_documents"] + e["heldout_documents"] for e in manifest["sources"].values())
    assert rows[-1]["documents_out"] == kept
    samples = [sample for row in rows for sample in row["samples"]]
    assert samples
    assert not any("@python.org" in sample["excerpt"] for sample in samples)
    assert all(len(sample["excerpt"]) <= 160 for sample in samples)


def test_the_same_inputs_give_the_same_bytes_in_another_process(built, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.corpus.test_stage import build; build(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, cwd=root)
    here = digests(built)
    assert here == digests(tmp_path)
    assert sum(name.startswith("data/shards") for name in here) >= 20


def test_broken_sources_are_refused_before_anything_is_written(tmp_path):
    config = RawConfig.model_validate({"sources": [{"name": "mine", "path": tmp_path / "nowhere"}]})
    context = make_context(tmp_path / "c")
    with pytest.raises(UserError, match="there is no file or folder"):
        raw(config, {}, context)
    assert not (context.out / "documents.parquet").exists()
    nothing = {"python": {f"{k}_megabytes": 0 for k in ("code", "docstring", "readme", "licence")}, "synthetic": None}
    with pytest.raises(UserError, match="hold no text at all"):
        raw(RawConfig.model_validate(nothing), {}, context)


def test_a_funnel_that_removes_everything_says_so(built, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Too short.")
    config = RawConfig.model_validate(
        {"python": None, "synthetic": None, "sources": [{"name": "notes", "path": tmp_path / "notes"}]}
    )
    context = make_context(tmp_path / "r")
    raw(config, {}, context)
    inputs = {"raw": make_artifact(context.out), "tasks": make_artifact((built / "tasks").resolve())}
    with pytest.raises(UserError, match="removed every document"):
        data(DataConfig.model_validate(DATA), inputs, make_context(tmp_path / "d"))


def test_traffic_becomes_rows_and_malformed_traffic_is_refused(built, tmp_path):
    good = {
        "id": "r1", "messages": [{"role": "user", "content": "What is 2+2?"}], "response": "4", "finish": "stop",
        "consent": True, "feedback": [{"name": "thumbs_up", "value": True}],
    }  # fmt: skip
    folder = tmp_path / "traffic"
    write_jsonl(folder / "requests.jsonl", [good])
    inputs = {"traffic": make_artifact(folder), "tasks": make_artifact((built / "tasks").resolve())}
    context = make_context(tmp_path / "t")
    traffic_data(TrafficDataConfig(), inputs, context)
    assert len(read_jsonl(context.out / "rows.jsonl")) == 1
    assert read_jsonl(context.out / "preferences.jsonl") == []
    assert read_json(context.out / "funnel.json")[0]["documents_in"] == 1
    del good["consent"]
    (folder / "requests.jsonl").write_text(json.dumps(good) + "\n")
    with pytest.raises(UserError, match="row 1: no 'consent'"):
        traffic_data(TrafficDataConfig(), inputs, make_context(tmp_path / "u"))
