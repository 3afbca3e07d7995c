"""The store survives death and failing disks at every change it makes."""

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_atomic
from loopline.store.artifact import MANIFEST, content_digest
from loopline.store.store import Store
from loopline.store.why import BuildKey, explain
from tests.faults import every_fault

KEY = BuildKey("sft", "sft", 1, 3, {"steps": 5}, {"base": {"stage": "pretrain", "digest": "ab"}})


def work(attempt):
    """A stage: some files, one of them empty, a curve, and a scratch file that must survive until the commit."""
    (attempt.state / "step").write_text("5")
    (attempt.out / "tokenizer").mkdir(exist_ok=True)
    (attempt.out / "tokenizer" / "tokenizer.json").write_text("{}")
    (attempt.out / "weights").write_bytes(bytes(range(256)) * 40)
    (attempt.out / "empty").touch()
    (attempt.out / "log").mkdir(exist_ok=True)
    (attempt.out / "log" / "metrics.jsonl").write_text('{"step": 0}\n')


def make(store, key=KEY):
    found = store.find(key)
    if found is not None:
        return found
    attempt = store.begin(key)
    work(attempt)
    return store.commit(attempt, "checkpoint", {"loss": 0.5}, {"threads": 1})


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make(Store(tmp_path_factory.mktemp("reference"))).digest


def assert_whole_or_nothing(root, key=KEY):
    """What any reader finds, before anything was mended."""
    store = Store(root)
    assert store.verify() == []
    found = store.find(key)
    assert [item.identity for item in store.artifacts(key.stage)] == ([key.identity] if found else [])
    if found is not None:
        assert content_digest(found.path) == found.digest
        assert (found / "weights").read_bytes() == bytes(range(256)) * 40
        assert (found / "empty").exists()
        assert BuildKey.of_manifest(found.meta) == key
    return found


@pytest.mark.parametrize("kind", ["death", "error"])
def test_a_fault_anywhere_from_begin_to_commit_leaves_all_or_nothing(tmp_path, reference, kind):
    outcomes = []
    for k in every_fault(lambda k: lambda: make(Store(tmp_path / str(k))), kind):
        outcomes.append(assert_whole_or_nothing(tmp_path / str(k)) is not None)
        store = Store(tmp_path / str(k))
        store.sweep()
        assert make(store).digest == reference
        store.sweep()
        assert list((tmp_path / str(k) / "work").iterdir()) == []
        assert assert_whole_or_nothing(tmp_path / str(k)) is not None
        shutil.rmtree(tmp_path / str(k))
    assert len(outcomes) > 25
    assert {False, True} == set(outcomes)
    if kind == "death":
        # Nothing, until the one rename; everything, ever after.
        assert outcomes == sorted(outcomes)


@pytest.mark.parametrize("kind", ["death", "error"])
def test_what_a_stage_kept_in_its_state_outlives_every_crash_before_the_artifact_is_there(tmp_path, reference, kind):
    def prepare(k):
        store = Store(tmp_path / str(k))
        attempt = store.begin(KEY)
        work(attempt)
        (attempt.out / "leftover").mkdir()
        (attempt.out / "leftover" / "half").write_text("half")

        def again():
            second = store.begin(KEY)
            assert not (second.out / "leftover").exists()
            work(second)
            store.commit(second, "checkpoint", {}, {})

        return again

    for k in every_fault(prepare, kind):
        store = Store(tmp_path / str(k))
        if assert_whole_or_nothing(tmp_path / str(k)) is None:
            attempt = store.begin(KEY)
            # Death in the stage's own rewriting of it may leave it empty, but never gone.
            assert (attempt.state / "step").read_text() in ("5", "")
            assert (attempt.out / "log" / "metrics.jsonl").exists()
        store.sweep()
        assert make(store).digest == reference
        shutil.rmtree(tmp_path / str(k))


@pytest.mark.parametrize("kind", ["death", "error"])
def test_a_fault_while_sweeping_loses_no_artifact_and_no_unfinished_attempt(tmp_path, reference, kind):
    other = replace(KEY, seed=4)

    def prepare(k):
        store = Store(tmp_path / str(k))
        make(store)
        # Death right after the rename leaves the attempt of a finished artifact behind.
        for name in ("state", "out"):
            (store.workplace(KEY) / name).mkdir(parents=True)
            (store.workplace(KEY) / name / "file").write_text("x")
        work(store.begin(other))
        return lambda: Store(tmp_path / str(k)).sweep()

    count = 0
    for k in every_fault(prepare, kind):
        count += 1
        store = Store(tmp_path / str(k))
        assert assert_whole_or_nothing(tmp_path / str(k)).digest == reference
        store.sweep()
        assert [item.name for item in (tmp_path / str(k) / "work").iterdir()] == [store.workplace(other).name]
        assert (store.begin(other).state / "step").read_text() == "5"
    assert count >= 5


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    """The writer is killed by `os._exit` in the middle of each file."""
    store = Store(tmp_path)
    attempt = store.begin(KEY)
    work(attempt)
    for path in (attempt.state / "step", attempt.out / "log" / "curve.json", tmp_path / "run.json"):
        child = os.fork()
        if not child:
            write_atomic(path, lambda file: os._exit(9))
        assert os.waitpid(child, 0)[1]
    (tmp_path / ".notes").write_text("mine")
    halves = sorted(tmp_path.rglob("*.partial"))
    assert len(halves) == 3
    store.sweep()
    assert sorted(tmp_path.rglob("*.partial")) == [path for path in halves if path.parent == tmp_path], (
        "a report or a service may be writing beside the attempts"
    )
    os.utime(next(tmp_path.glob(".*.partial")), (0, 0))
    store.sweep()
    assert not list(tmp_path.rglob("*.partial"))
    assert (attempt.state / "step").read_text() == "5" and (tmp_path / ".notes").exists()


@pytest.mark.parametrize("kind", ["death", "error"])
def test_a_fault_while_moving_a_name_leaves_it_where_it_was_or_where_it_goes(tmp_path, kind):
    other = replace(KEY, seed=4)

    def prepare(k):
        store = Store(tmp_path / str(k))
        store.set_ref("champion", make(store))
        second = make(store, other)
        return lambda: store.set_ref("champion", second)

    for k in every_fault(prepare, kind):
        store = Store(tmp_path / str(k))
        assert store.ref("champion").identity in (KEY.identity, other.identity)
        store.set_ref("champion", store.find(other))
        assert store.ref("champion").identity == other.identity


def rows(root):
    with closing(sqlite3.connect(root / "index.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return sorted(identity for (identity,) in database.execute("SELECT identity FROM artifacts"))


@pytest.mark.parametrize("kind", ["death", "error"])
def test_a_fault_while_rebuilding_the_index_leaves_the_old_or_the_new_one(tmp_path, kind):
    other = replace(KEY, seed=4)
    both = sorted([KEY.identity, other.identity])

    def prepare(k):
        store = Store(tmp_path / str(k))
        make(store)
        store.rebuild_index()
        make(store, other)
        return store.rebuild_index

    for k in every_fault(prepare, kind):
        root = tmp_path / str(k)
        assert rows(root) in ([KEY.identity], both)
        Store(root).rebuild_index()
        assert rows(root) == both


def test_the_index_can_be_deleted_and_comes_back_the_same(tmp_path):
    store = Store(tmp_path)
    artifact = make(store)
    make(store, replace(KEY, stage="grpo", kind="grpo"))
    store.rebuild_index().unlink()
    assert store.find(KEY) is not None  # The manifests are the truth.
    with closing(sqlite3.connect(store.rebuild_index())) as database:
        found = database.execute(
            "SELECT stage, kind, digest, path, config, metrics FROM artifacts WHERE identity = ?", (KEY.identity,)
        ).fetchall()
    stage, kind, digest, path, config, metrics = found[0]
    assert len(found) == 1 and len(rows(tmp_path)) == 2
    assert (stage, kind, digest) == ("sft", "checkpoint", artifact.digest)
    assert (tmp_path / path / MANIFEST).exists() and not Path(path).is_absolute()
    assert (json.loads(config), json.loads(metrics)) == ({"steps": 5}, {"loss": 0.5})


@pytest.mark.parametrize("change", ["flip", "remove", "add", "rename"])
def test_verify_finds_every_kind_of_damage(tmp_path, change):
    store = Store(tmp_path)
    artifact = make(store)
    sound = make(store, replace(KEY, stage="grpo", kind="grpo"))
    assert store.verify() == []
    weights = artifact / "weights"
    if change == "flip":
        content = bytearray(weights.read_bytes())
        content[5000] ^= 1
        weights.write_bytes(content)
    elif change == "remove":
        (artifact / "empty").unlink()
    elif change == "add":
        (artifact / "extra").touch()
    else:
        weights.rename(artifact / "weight")
    assert store.verify() == [artifact.path.relative_to(tmp_path).as_posix()]
    assert sound.path.relative_to(tmp_path).as_posix() not in store.verify()


def test_an_artifact_deleted_but_not_to_the_end_is_made_again(tmp_path, reference):
    store = Store(tmp_path)
    artifact = make(store)
    (artifact / MANIFEST).unlink()
    assert store.find(KEY) is None
    assert make(store).digest == reference
    assert store.verify() == []


def test_the_manifest_records_what_it_was_made_from_and_how_long_it_took(tmp_path):
    store = Store(tmp_path)
    attempt = store.begin(KEY)
    attempt.started -= 30
    attempt.beat()
    again = store.begin(KEY)
    again.started -= 12
    work(again)
    meta = store.commit(again, "checkpoint", {"loss": 0.5}, {"threads": 3, "device": "cpu"}).meta
    assert 42 <= meta["seconds"] < 47  # Both attempts count.
    assert (meta["seed"], meta["version"], meta["config"], meta["inputs"]) == (3, 1, KEY.config, KEY.inputs)
    assert meta["metrics"] == {"loss": 0.5}
    assert meta["environment"]["threads"] == 3
    assert re.match(r"\d+\.\d+", meta["environment"]["torch"])


def test_where_a_run_directory_lies_does_not_reach_the_digest(tmp_path, reference):
    assert make(Store(tmp_path / "some" / "where" / "else")).digest == reference


def test_reasons_compare_with_the_latest_artifact_of_the_stage(tmp_path):
    store = Store(tmp_path)
    assert explain(store.changes(KEY)) == "never ran before"
    for steps in (5, 9, 7):
        make(store, replace(KEY, config={"steps": steps}))
    make(store, replace(KEY, stage="other", config={"steps": 1}))
    sentence = explain(store.changes(replace(KEY, config={"steps": 8})))
    assert sentence == "sft.steps changed from 7 to 8"


def test_an_attempt_that_did_not_finish_is_told_from_one_that_never_began(tmp_path):
    store = Store(tmp_path)
    store.begin(KEY)
    assert explain(store.changes(KEY)) == "an earlier attempt did not finish"


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="no ref 'champion'.*none yet"):
        store.ref("champion")
    store.set_ref("base", make(store))
    with pytest.raises(UserError, match="no ref 'champion'.*use one of: base"):
        store.ref("champion")
    assert store.ref("base").identity == KEY.identity
