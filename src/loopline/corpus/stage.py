"""The corpus stages: `raw` documents, `data` (shards and tokenizer), `traffic_data` (loop A).

Use: named in a recipe and run by the line, or called with a config, input artifacts and a context. Formats:
raw writes documents.parquet and sources.json; data writes tokenizer/, shards/, manifest.json and funnel.json;
traffic_data writes rows.jsonl, preferences.jsonl and funnel.json. Not covered: choosing mixture weights (see `plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.corpus import decontaminate, dedup, language, licences, neardup, normalize, pii, quality, split
from loopline.corpus.config import DataConfig, RawConfig, TrafficDataConfig
from loopline.corpus.decontaminate import heldout_index
from loopline.corpus.document import Document, count_by_source, read_documents, write_documents
from loopline.corpus.funnel import Change, Funnel
from loopline.corpus.python_source import read_python
from loopline.corpus.readers import read_source
from loopline.corpus.shards import mixture, token_dtype, write_split
from loopline.corpus.tokenizer import plain, save, train, training_texts
from loopline.corpus.traffic import collect
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.generators.generate import generate_documents
from loopline.text.index import TextIndex


def raw(config: RawConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Read every source into one table of documents. Raises `UserError` for a broken source or an empty corpus."""
    # The user's own sources first: if one is broken, nothing else is computed.
    documents = [document for source in config.sources for document in read_source(source)]
    with ctx.progress("reading sources", total=2) as bar:
        if config.python is not None:
            documents += read_python(config.python)
        bar.advance()
        if config.synthetic is not None:
            rows = generate_documents(config.synthetic, ctx.seed)
            documents += [Document(**row) for row in rows]
        bar.advance()
    if not documents:
        raise UserError("The sources hold no text at all", "raise the caps under `python`, or add a source with text")
    documents.sort(key=lambda document: (document.source, document.path))
    counts = count_by_source(documents)
    write_documents(ctx.out / "documents.parquet", documents)
    write_json(ctx.out / "sources.json", counts)
    ctx.metrics.summary(
        documents=len(documents), megabytes=sum(entry["bytes"] for entry in counts.values()) / 1e6, sources=len(counts)
    )


def data(config: DataConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Clean, deduplicate, decontaminate, split, mix, tokenize and write shards."""
    documents = read_documents(inputs["raw"] / "documents.parquet")
    held_out = heldout_index(inputs["tasks"].path, config.decontamination)
    rows = read_jsonl(inputs["tasks"] / "train.jsonl")
    with ctx.progress("data engineering", total=11) as bar:
        funnel = run_funnel(documents, held_out, config, bar)
        chosen = split_off(funnel, config)
        bar.advance()
        manifest, tokenizer = _write(funnel.documents, chosen, rows, config, ctx.out)
        bar.advance()
    save(tokenizer, ctx.out / "tokenizer")
    write_json(ctx.out / "funnel.json", funnel.rows())
    write_json(ctx.out / "manifest.json", manifest)
    ctx.metrics.summary(
        documents_in=len(documents), documents_out=len(funnel.documents),
        train_tokens=sum(entry["train_tokens"] for entry in manifest["sources"].values()),
        heldout_tokens=sum(entry["heldout_tokens"] for entry in manifest["sources"].values()),
    )  # fmt: skip


def run_funnel(documents: list[Document], held_out: TextIndex, config: DataConfig, bar: Any) -> Funnel:
    """All steps up to decontamination. PII goes first, so that copies that differ in addresses alone are duplicates."""
    funnel = Funnel(documents, config.samples, censor=pii.clean)
    rules = {"prose": config.prose, "code": config.code}
    steps: dict[str, Callable[[], Change]] = {
        "normalize": lambda: normalize.step(funnel.documents),
        "licence": lambda: licences.step(funnel.documents),
        "language": lambda: language.step(funnel.documents, config.languages, config.language_confidence),
        "quality": lambda: quality.step(funnel.documents, rules),
        "personal data": lambda: pii.step(funnel.documents) if config.pii else Change(),
        "exact duplicates": lambda: dedup.exact_step(funnel.documents),
        "repeated passages": lambda: dedup.passage_step(funnel.documents, config.dedup),
        "near duplicates": lambda: neardup.step(funnel.documents, config.dedup),
        "decontaminate": lambda: decontaminate.step(funnel.documents, held_out, config.decontamination),
    }
    for name, step in steps.items():
        funnel.apply(name, step())
        bar.advance()
    if not funnel.documents:
        raise UserError(
            "The funnel removed every document",
            "loosen the limits under `prose` and `code`, or give the raw stage more and better text",
        )
    return funnel


def split_off(funnel: Funnel, config: DataConfig) -> set[str]:
    """Ids of the validation documents; those that training repeats are removed altogether."""
    chosen = split.choose(funnel.documents, config.heldout_share, config.dedup)
    leaks = split.leaked(funnel.documents, chosen, config.decontamination)
    ids = {funnel.documents[number].id for number in chosen - leaks}
    funnel.apply("validation", Change(removed=dict.fromkeys(sorted(leaks), "training repeats it")))
    return ids


def _write(
    documents: list[Document], heldout_ids: set[str], tasks_rows: list[dict[str, Any]], config: DataConfig, out: Path
) -> tuple[dict[str, Any], Any]:
    """Train the tokenizer on the training documents, write the shards, return the manifest and the tokenizer."""
    training = [document for document in documents if document.id not in heldout_ids]
    sizes = {source: entry["bytes"] for source, entry in count_by_source(training).items()}
    by_bytes = mixture(sizes, config.weights, config.synthetic_share)
    settings = config.tokenizer
    texts = training_texts(training, by_bytes, tasks_rows, int(settings.train_megabytes * 1e6), settings.task_share)
    tokenizer = train(texts, settings.vocab_size)
    corpus_tokenizer = plain(tokenizer)
    sources: dict[str, dict[str, Any]] = {}
    for source in sorted({document.source for document in documents}):
        # Generated documents may use the special tokens of the chat format; no other text may.
        encoder = tokenizer if source.startswith("synthetic/") else corpus_tokenizer
        entry: dict[str, Any] = {}
        for name, part in (
            ("train", [document for document in training if document.source == source]),
            ("heldout", [d for d in documents if d.source == source and d.id in heldout_ids]),
        ):
            entry |= write_split(out / "shards", source, name, part, encoder, settings.vocab_size)
        entry["licences"] = sorted({document.licence for document in documents if document.source == source})
        sources[source] = entry
    weights = mixture(
        {source: entry["train_tokens"] for source, entry in sources.items()}, config.weights, config.synthetic_share
    )
    for source, weight in weights.items():
        sources[source]["weight"] = weight
    dtype = "uint16" if token_dtype(settings.vocab_size).itemsize == 2 else "uint32"
    return {"vocab_size": settings.vocab_size, "dtype": dtype, "sources": sources}, tokenizer


def traffic_data(config: TrafficDataConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Turn consented traffic into rows.jsonl and preferences.jsonl, with the funnel beside."""
    requests = read_jsonl(inputs["traffic"] / "requests.jsonl")
    _check_requests(requests, inputs["traffic"] / "requests.jsonl")
    held_out = heldout_index(inputs["tasks"].path, config.decontamination)
    sft, preferences, funnel = collect(requests, held_out, config)
    write_jsonl(ctx.out / "rows.jsonl", sft)
    write_jsonl(ctx.out / "preferences.jsonl", preferences)
    write_json(ctx.out / "funnel.json", funnel)
    told = f"{len(sft)} examples and {len(preferences)} preferences from {len(requests)} answers"
    ctx.metrics.summary(headline=told, requests=len(requests), rows=len(sft), preferences=len(preferences))


def _check_requests(requests: list[Any], path: Path) -> None:
    for number, row in enumerate(requests, start=1):
        missing = (
            [key for key in ("id", "messages", "response", "consent") if key not in row]
            if isinstance(row, dict)
            else ["id"]
        )
        if missing:
            raise UserError(f"{path}, row {number}: no {missing[0]!r}", "write the rows that `loopline serve` exports")
