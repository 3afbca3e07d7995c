"""A scoring layer on a language model: reward models, process reward models, value networks.

    model = ScoreModel(load_model(path))                # one score per position
    scores_BT1 = model.score(model(tokens_BT))

Saved in the layout of `<Family>ForSequenceClassification`, which `transformers` loads with equal scores: there the
score of a sequence is that of its last token. A process reward model scores the last token of each step, a value
network every token. Not covered: classification heads with hidden layers or biases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from loopline.base.errors import UserError
from loopline.model.cache import KeyValueCache
from loopline.model.decoder import Decoder
from loopline.model.language_model import LanguageModel
from loopline.model.segments import Segments

LANGUAGE_SUFFIXES = ("ForCausalLM", "LMHeadModel")
SCORE_SUFFIX = "ForSequenceClassification"


class ScoreModel(LanguageModel):
    """A language model whose hidden states are scored by a linear layer instead of over the vocabulary."""

    plain_output = False

    def __init__(self, decoder: LanguageModel, outputs: int = 1, weight: Tensor | None = None) -> None:
        """`weight` (outputs, D) defaults to zeros, so that a fresh model scores everything equally.

        The decoder's own output layer is dropped unless it is tied: this layout has no place for it.
        """
        super().__init__()
        if isinstance(decoder, Decoder) and decoder.head is not None:
            decoder.head = None
            decoder.config = decoder.config.model_copy(update={"tie_word_embeddings": True})
        self.decoder = decoder
        self.config = decoder.config
        self.source = decoder.source
        self.takes_segments = decoder.takes_segments
        like = next(decoder.parameters())
        self.score = nn.Linear(decoder.config.hidden_size, outputs, bias=False, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            self.score.weight.zero_() if weight is None else self.score.weight.copy_(weight)

    @property
    def outputs(self) -> int:
        """Scores per position."""
        return self.score.out_features

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | Segments | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm; see `LanguageModel.forward`."""
        hidden: Tensor = self.decoder(tokens_BT, positions_BT=positions_BT, mask=mask, cache=cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """There are none: raises `UserError`."""
        raise UserError(
            "A score model has no output layer over the vocabulary", "use the policy's checkpoint to sample"
        )

    @property
    def output_weight(self) -> Tensor:
        """The scoring layer's matrix, (outputs, D)."""
        return self.score.weight

    def new_cache(self, rows: int, length: int) -> KeyValueCache:
        """An empty cache of the decoder."""
        return self.decoder.new_cache(rows, length)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and tensors of `<Family>ForSequenceClassification`."""
        config, tensors = self.decoder.export()
        name = str((config.get("architectures") or [""])[0])
        for suffix in LANGUAGE_SUFFIXES:
            name = name.removesuffix(suffix) + SCORE_SUFFIX if name.endswith(suffix) else name
        if not name.endswith(SCORE_SUFFIX):
            raise UserError(
                f"config.json names the architecture {name!r}, for which no scoring layout is known",
                "start from a checkpoint of a causal language model",
            )
        head = {key for key in tensors if key in ("lm_head.weight", "lm_head.bias", "embed_out.weight")}
        tensors = {key: value for key, value in tensors.items() if key not in head}
        tensors["score.weight"] = self.score.weight.detach().cpu().contiguous().clone()
        labels = {str(number): f"LABEL_{number}" for number in range(self.outputs)}
        known = config.get("id2label") or {}
        if len(known) != self.outputs:
            config |= {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}}
        return config | {"architectures": [name]}, dict(sorted(tensors.items()))
