"""A small line of real artifacts, and a check that a training stage repeats itself and survives a crash."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from loopline.base.files import write_json
from loopline.corpus import tokenizer as tokenizers
from loopline.corpus.document import Document
from loopline.corpus.shards import mixture, write_split
from loopline.evaluation.graders import graders
from loopline.grading.config import GradersConfig
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.posttrain.sft import sft
from loopline.posttrain.sft_config import SFTConfig
from loopline.store.artifact import content_digest
from loopline.store.context import Context
from loopline.tasks.generators.config import DocumentBytes, GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import generate_documents, write_tasks
from loopline.training import loop
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainRuntime
from tests.support import make_artifact, make_context
from tests.support_graders import DEFINITIONS

OFTEN = TrainRuntime(save_every=2)
"""Checkpoints often enough that a short run has some."""
GENERATORS = GeneratorConfig(
    train=TrainCounts(arithmetic=12, word_problem=4, ordering=4, code=8, format=8, safety=16, lookup=8),
    heldout=3,
    documents=DocumentBytes(arithmetic=6000, word_problem=4000, ordering=2000, code=3000, safety=2000, lookup=2000),
)
VOCABULARY = 400
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
}
PLAN = {
    "model": SHAPE,
    "student": {**SHAPE, "hidden_size": 24, "num_hidden_layers": 1},
    "tokens": 7 * 256,
    "steps": 7,
    "batch_tokens": 256,
    "sequence_length": 64,
    "learning_rate": 2e-3,
    "matrix_learning_rate": 0.02,
    "schedule": {"warmup": 0.02, "decay": 0.2, "final": 0.1},
}


@lru_cache
def build_world(root: Path):
    """Artifacts below `root`: tasks, data, plan, mixture, graders, base (untrained), policy (knows some answers)."""
    tasks = write_tasks(GENERATORS, 1, root / "tasks")
    documents = [Document(**row) for row in generate_documents(GENERATORS, 1)]
    texts = [document.text for document in documents]
    texts += list(tokenizers.training_texts([], {}, tasks.train, 20_000, 1.0))
    fast = tokenizers.train(texts, VOCABULARY)
    tokenizers.save(fast, root / "data" / "tokenizer")
    sources = {}
    for source in sorted({document.source for document in documents}):
        members = [document for document in documents if document.source == source]
        sources[source] = {
            **write_split(root / "data/shards", source, "train", members[1:], tokenizers.plain(fast), VOCABULARY),
            **write_split(root / "data/shards", source, "heldout", members[:1], tokenizers.plain(fast), VOCABULARY),
        }
    weights = mixture({name: entry["train_tokens"] for name, entry in sources.items()}, {}, 0.5)
    manifest = {name: {**entry, "weight": weights[name]} for name, entry in sources.items()}
    write_json(root / "data" / "manifest.json", {"vocab_size": VOCABULARY, "dtype": "uint16", "sources": manifest})
    write_json(root / "plan" / "plan.json", PLAN)
    after = {name: float(name == "synthetic/arithmetic") for name in weights}
    write_json(root / "mixture" / "mixture.json", {"before": weights, "after": after})
    shape = ModelConfig.model_validate(SHAPE)
    base = Decoder(shape).initialize(torch.Generator().manual_seed(5))
    save_checkpoint(base, root / "data" / "tokenizer", root / "base")
    world = {name: make_artifact(root / name, stage=name) for name in ("tasks", "data", "plan", "mixture", "base")}
    audit = make_context(root / "audit", stage="graders")
    graders(GradersConfig(audit_tasks=4, definitions=DEFINITIONS), world, audit)
    world["graders"] = make_artifact(audit.out, stage="graders")
    taught = make_context(root / "taught", stage="sft")
    settings = SFTConfig(
        steps=90,
        batch_size=24,
        sequence_length=200,
        rows_per_batch=8,
        tasks={"arithmetic": 0.5, "word_problem": 0.1, "ordering": 0.1, "safety": 0.3},
        limits={"safety": 4},
        styles={"direct": 1.0, "think": 0.0},
        optimizer=OptimizerConfig(kind="muon", learning_rate=5e-3, weight_decay=0.01),
        schedule=ScheduleConfig(warmup=0.02, decay=0.4, final=0.0),
    )
    sft(settings, {"policy": world["base"], "tasks": world["tasks"]}, taught)
    world["policy"] = make_artifact(taught.out, stage="sft")
    return world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The artifacts by role, the same ones for every test of the session."""
    base = tmp_path_factory.getbasetemp() / "world"
    return dict(build_world(base))


class Killed(Exception):
    """Stands in for whatever ends a process in the middle."""


def cut_off(monkeypatch, target, name, after):
    """Let `target.name` work `after` times and then raise `Killed`."""
    plain, calls = getattr(target, name), []

    def limited(*arguments, **options):
        if len(calls) == after:
            raise Killed
        calls.append(None)
        return plain(*arguments, **options)

    monkeypatch.setattr(target, name, limited)


def check_training_stage(stage, config, inputs, path: Path, steps: int, name: str = "test", cut: int = 5) -> Context:
    """Run a stage whole and once cut off in step `cut`; both must end in the same bytes. Returns the whole run."""
    whole, torn = (make_context(path / side, seed=3, stage=name) for side in ("whole", "torn"))
    stage(config, inputs, whole)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, loop, "accumulate", cut)
        with pytest.raises(Killed):
            stage(config, inputs, torn)
    assert not (torn.out / "model.safetensors").exists()
    resumed = make_context(path / "torn", seed=3, stage=name)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        plain = loop.accumulate
        patch.setattr(loop, "accumulate", lambda *arguments: done.append(None) or plain(*arguments))
        stage(config, inputs, resumed)
    assert len(done) < steps, "it started over"
    assert content_digest(whole.out) == content_digest(resumed.out)
    for context in (whole, resumed):
        lines = (context.out / "log" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(steps))
        assert all("loss" in json.loads(line) for line in lines)
    assert whole.metrics.values == resumed.metrics.values
    assert_checkpoint(whole.out)
    return whole


CHECKPOINT = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def assert_checkpoint(out: Path, beside: frozenset[str] = frozenset()) -> None:
    """`out` holds a checkpoint that loads."""
    names = {file.name for file in out.iterdir()} - {"log", "artifact.json"}
    assert names >= CHECKPOINT | beside
    model = load_model(out)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def changed_weights(before: Path, after: Path) -> bool:
    """Whether training moved anything."""
    return (before / "model.safetensors").read_bytes() != (after / "model.safetensors").read_bytes()
