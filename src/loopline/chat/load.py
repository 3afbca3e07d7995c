"""The tokenizer and chat format of a checkpoint directory.

    tokenizer = load_tokenizer(path)

Not covered: weights (see `model.checkpoint`).
"""

from __future__ import annotations

from pathlib import Path

from loopline.chat.stock_tokenizer import StockTokenizer
from loopline.chat.tokenizer import Tokenizer, is_ours


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a directory: ours where the special tokens are ours, else the stock one with its chat template.

    Raises `UserError` when files are missing or damaged.
    """
    path = Path(path)
    if not (path / "tokenizer.json").exists() or is_ours(path):
        return Tokenizer.load(path)
    return StockTokenizer.load(path)
