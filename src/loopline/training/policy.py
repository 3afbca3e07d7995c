"""What a stage trains: the whole checkpoint, or a low-rank adapter on it; and how either is saved.

    model = load_policy(start, LoRAConfig(rank=8), ctx.device)
    ...train...
    sampler.load(policy_weights(model, sampler.model), version)     # rollouts of an adapter, on the fast engine
    save_policy(model, start, ctx.out)

Either way the result is a whole checkpoint directory, so what follows need not know. An adapter also lies beside it by
itself, in `adapter/`, in the format of `peft`. Not covered: sampling with an adapter that is not merged.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from loopline.model.adapter_config import LoRAConfig
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.language_model import LanguageModel


def load_policy(start: Path, adapter: LoRAConfig | None, device: str = "cpu") -> LanguageModel:
    """The model of a checkpoint directory, ready to train. With `adapter` only a fresh adapter has gradients.

    Raises `UserError` when a package that adapters need is missing, or a layer named in `targets`.
    """
    if adapter is None:
        return load_model(start, device)
    from loopline.model.adapter import add_adapter
    from loopline.model.huggingface import load_huggingface

    return add_adapter(load_huggingface(start, device, four_bit=adapter.four_bit), adapter)


def has_merged_weights(model: LanguageModel) -> bool:
    """Whether what is saved of `model` are other weights than its own: those of its start with the adapter added."""
    from loopline.model.huggingface import HuggingFaceModel

    if not isinstance(model, HuggingFaceModel):
        return False
    from loopline.model.adapter import has_adapter

    return has_adapter(model)


def policy_weights(model: LanguageModel, like: LanguageModel) -> dict[str, Tensor]:
    """The state dict that gives `like`, a plain model of the same checkpoint, the weights of `model`, adapter added."""
    from loopline.model.huggingface import HuggingFaceModel

    if isinstance(model, HuggingFaceModel) and has_merged_weights(model):
        from loopline.model.adapter import merged_state

        return merged_state(model, like)
    return dict(model.state_dict())


def save_policy(model: LanguageModel, start: Path, out: Path) -> None:
    """Write the trained checkpoint to `out`, its adapter, where it has one, added to the weights."""
    from loopline.model.huggingface import HuggingFaceModel

    if isinstance(model, HuggingFaceModel) and has_merged_weights(model):
        from loopline.model.adapter import save_adapter

        save_adapter(model, out / "adapter")
        merged = load_model(start)
        merged.load_state_dict({name: value.cpu() for name, value in policy_weights(model, merged).items()})
        model = merged
    save_checkpoint(model, start, out)
