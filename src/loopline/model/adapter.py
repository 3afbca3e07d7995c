"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through `peft`, in its format.

    model = add_adapter(load_huggingface(path), LoRAConfig(rank=8))    # needs the extra "peft"
    ...train...                                                       # only the adapter has gradients
    engine.load(merged_state(model, engine.model), version)           # rollouts on the fast engine
    save_adapter(model, out)                                          # adapter_model.safetensors, adapter_config.json

The base stays as it was, so a policy's reference is the same model with `disabled(model)`. With
`load_huggingface(path, four_bit=True)` the base is quantized (QLoRA, arXiv:2305.14314; the extra "qlora"): merging adds
the adapter to what the quantized base computes with, so rollouts and training see one policy. Not covered: dropout in
the adapter (the trainer's log-probs would differ from the sampler's), adapters on embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.model.adapter_config import LoRAConfig
from loopline.model.decoder import Decoder
from loopline.model.huggingface import HuggingFaceModel
from loopline.model.language_model import LanguageModel
from loopline.model.layout import from_huggingface, split_fused_experts
from loopline.model.merged import merged_tensors

NAME = "default"
"""What `peft` calls an adapter that nobody named."""


def require_peft() -> Any:
    """The `peft` module. Raises `UserError` when it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UserError("Adapters need the package peft", "pip install 'loopline[peft]'") from error
    return peft


def add_adapter(model: HuggingFaceModel, config: LoRAConfig) -> HuggingFaceModel:
    """Put a fresh adapter on `model`, in place, and freeze everything else. It changes no output until it is trained.

    Raises `UserError` when `peft` is not installed, the model has an adapter already, or no layer is named so.
    """
    peft = require_peft()
    if has_adapter(model):
        raise UserError("The model has an adapter already", "merge it first, or load the checkpoint again")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            _keep(model, peft.get_peft_model(model.module, settings))
        except ValueError as error:
            raise UserError(
                f"The adapter fits nowhere ({error})", "name linear layers of this architecture in targets"
            ) from error
    return model


def save_adapter(model: HuggingFaceModel, out: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, as `peft` has them."""
    _adapter(model).save_pretrained(str(out), safe_serialization=True)
    (out / "README.md").unlink(missing_ok=True)  # a model card full of blanks


def load_adapter(model: HuggingFaceModel, path: Path) -> HuggingFaceModel:
    """Put the adapter saved in `path` on `model`, in place, ready for further training."""
    peft = require_peft()
    if has_adapter(model):
        raise UserError("The model has an adapter already", "merge it first, or load the checkpoint again")
    if not (path / "adapter_config.json").exists():
        raise UserError(f"{path} has no adapter_config.json", "point at a directory that save_adapter or peft wrote")
    _keep(model, peft.PeftModel.from_pretrained(model.module, str(path), is_trainable=True))
    return model


def has_adapter(model: LanguageModel) -> bool:
    """Whether an adapter is on the model."""
    return bool(getattr(model, "_adapter_holder", None))


@contextmanager
def disabled(model: HuggingFaceModel) -> Iterator[HuggingFaceModel]:
    """Within it the model computes what its base does: the reference policy, without a second copy."""
    with _adapter(model).disable_adapter():
        yield model


def merged_state(model: HuggingFaceModel, engine_model: LanguageModel) -> dict[str, Tensor]:
    """The state dict of `engine_model` (a `Decoder` of the same checkpoint, or a plain `HuggingFaceModel`), merged.

    It is what `TorchEngine.load` takes, so rollouts follow the adapter without `transformers` in the loop.
    """
    if isinstance(engine_model, Decoder):
        tensors = split_fused_experts(merged_tensors(model.module))
        return from_huggingface(tensors, engine_model.config)
    return {f"module.{name}": value for name, value in merged_tensors(model.module).items()}


def _keep(model: HuggingFaceModel, adapter: Any) -> None:
    # `peft` puts its layers into the module itself; its wrapper is kept beside it, not as a submodule, or every
    # parameter would have two names.
    object.__setattr__(model, "_adapter_holder", [adapter])
    model.module.eval()


def _adapter(model: HuggingFaceModel) -> Any:
    holder = getattr(model, "_adapter_holder", None)
    if not holder:
        raise UserError("The model has no adapter", "call add_adapter or load_adapter first")
    return holder[0]
