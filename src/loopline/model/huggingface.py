"""Any other architecture, through `transformers`, behind the interface of `LanguageModel`.

    model = load_huggingface(path)          # needs the extra "hf": pip install 'loopline[hf]'

The engine's static key/value cache and the trainer's packed rows are handed to the module as masks, positions and a
`transformers` cache that writes at positions. `probe` runs a few tokens at loading and proves three things: our logits
are the module's, packed sequences do not see each other, and what the cache holds. What fails is refused when it is
asked for, never computed differently. The module always stays in evaluation mode: dropout would make the trainer's
log-probs differ from the sampler's. Not covered: encoder-decoders, images, cached states that are not keys and values.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loopline.base.errors import UserError
from loopline.base.files import read_json
from loopline.model.cache import KeyValueCache, write_at
from loopline.model.language_model import LanguageModel, Source, source_dtype
from loopline.model.merged import merged_tensors, quantized
from loopline.model.segments import Segments
from loopline.model.weights import tensor_names

PLAIN_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Keys under which families say what else happens to the logits (Cohere, Granite, Gemma)."""


@dataclass(frozen=True)
class HuggingFaceConfig:
    """The sizes of a model that `transformers` computes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    model_type: str
    num_parameters: int

    def parameters(self) -> int:
        """Trainable parameters."""
        return self.num_parameters


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one kind of cached state, over all layers."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True)
class Abilities:
    """What `probe` found a module to compute as we need it."""

    packs: bool
    """Packed sequences give what each gives alone."""
    keys: LayerShape | None
    """Sizes of its cached keys; None where it has no such cache in every layer."""
    values: LayerShape | None


def require_transformers(reason: str) -> Any:
    """The `transformers` module. Raises `UserError` saying what it is needed for when it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{reason} needs the package transformers", "pip install 'loopline[hf]'") from error
    return transformers


class HuggingFaceModel(LanguageModel):
    """A causal language model of `transformers`."""

    config: HuggingFaceConfig
    module: Any
    """The `transformers` module, an `nn.Module`."""

    def __init__(self, module: nn.Module, source: Source | None = None) -> None:
        super().__init__()
        self.module = module
        self.source = source
        raw = self.module.config
        text = raw.get_text_config() if hasattr(raw, "get_text_config") else raw
        self.raw = text
        self.config = HuggingFaceConfig(
            vocab_size=self.output_weight.shape[0],
            hidden_size=text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            max_position_embeddings=getattr(text, "max_position_embeddings", None) or 2048,
            model_type=str(raw.model_type),
            num_parameters=self.module.num_parameters(),
        )
        head = self.module.get_output_embeddings()
        self.plain_output = not any(getattr(text, name, None) for name in PLAIN_SCALES) and head.bias is None
        self.module.eval()
        self.abilities = probe(self)

    def train(self, mode: bool = True) -> HuggingFaceModel:
        """Set the mode of this wrapper; the module below stays in evaluation mode, without dropout."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | Segments | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm; see `LanguageModel.forward`.

        Raises `UserError` for packed rows when the architecture does not keep them apart.
        """
        assert not isinstance(mask, Segments), "takes_segments is False"
        if mask is not None and not self.abilities.packs:
            raise UserError(
                f"The architecture {self.config.model_type} does not keep to our attention masks, so it can neither "
                "train on packed rows nor decode with a cache",
                "use an architecture with attention in every layer and positions as an input",
            )
        return self.hidden(tokens_BT, positions_BT, mask, cache)

    def hidden(
        self, tokens_BT: Tensor, positions_BT: Tensor | None, mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """`forward` without asking whether the module keeps to mask and positions."""
        inputs: dict[str, Any] = {"input_ids": tokens_BT, "use_cache": cache is not None}
        if positions_BT is not None:
            inputs["position_ids"] = positions_BT
        if mask is not None:
            inputs["attention_mask"] = self._masks(mask, tokens_BT, positions_BT if cache is not None else None)
        if cache is not None:
            assert positions_BT is not None and mask is not None
            inputs["past_key_values"] = cache_adapter(cache, positions_BT)
        out: Tensor = self.module.base_model(**inputs)[0]
        return out

    def _masks(self, mask: Tensor, tokens_BT: Tensor, positions_BT: Tensor | None) -> Any:
        """The mask in the form the module takes: by kind of layer where it has several, additive for plain products."""
        mask = mask[(None,) * (4 - mask.dim())]
        length, slots = tokens_BT.shape[1], mask.shape[-1]
        window = getattr(self.raw, "sliding_window", None)
        kinds = set(getattr(self.raw, "layer_types", None) or ())
        near = mask
        if window:
            # Distance in slots is distance in positions: inside a packed sequence, and in the cache by construction.
            at = torch.arange(length, device=mask.device)[None] if positions_BT is None else positions_BT
            near = mask & ((at[:, :, None] - torch.arange(slots, device=mask.device)) < window)[:, None]
        if len(kinds) > 1:
            return {kind: self._form(near if kind == "sliding_attention" else mask) for kind in sorted(kinds)}
        windowed = bool(window) and kinds != {"full_attention"} and getattr(self.raw, "use_sliding_window", True)
        return self._form(near if windowed else mask)

    def _form(self, mask: Tensor) -> Tensor:
        if getattr(self.raw, "_attn_implementation", "eager") == "sdpa":
            return mask
        dtype = self.output_weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D), scaled and capped as the family has it."""
        head = self.module.get_output_embeddings()
        scores: Tensor = head(hidden)
        if scale := getattr(self.raw, "logit_scale", None):
            scores = scores * scale
        if scale := getattr(self.raw, "logits_scaling", None):
            scores = scores / scale
        if cap := getattr(self.raw, "final_logit_softcapping", None):
            scores = cap * torch.tanh(scores / cap)
        return scores

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix, (V, D)."""
        weight: Tensor = self.module.get_output_embeddings().weight
        return weight

    def new_cache(self, rows: int, length: int) -> KeyValueCache:
        """An empty cache. Raises `UserError` when a layer of the architecture keeps something else."""
        keys, values = self.abilities.keys, self.abilities.values
        if keys is None or values is None:
            raise UserError(
                f"The architecture {self.config.model_type} does not keep keys and values of one size in every layer, "
                "which the engine's cache needs",
                "use an architecture with plain attention in every layer",
            )
        weight = self.output_weight
        cache = KeyValueCache(keys, rows, length, weight.device, weight.dtype)
        if values != keys:
            cache.values = KeyValueCache(values, rows, length, weight.device, weight.dtype).values
        return cache

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and tensors as `save_pretrained` has them, adapters merged; every key the source had stays."""
        if self.source is not None and quantized(self.module):
            # `transformers` would write the packed weights; the names of the unpacked ones are those of the source.
            tensors = {k: v.detach().cpu() for k, v in merged_tensors(self.module).items() if k in self.source.tensors}
            return dict(self.source.config), {name: tensors[name].contiguous() for name in sorted(tensors)}
        with tempfile.TemporaryDirectory() as folder:
            self.module.save_pretrained(folder, state_dict=merged_tensors(self.module), max_shard_size="1000GB")
            tensors = load_file(Path(folder) / "model.safetensors")
            config = read_json(Path(folder) / "config.json")
        if self.source is not None:
            config = dict(self.source.config)
        return config, {name: tensors[name].contiguous() for name in sorted(tensors)}


def load_huggingface(
    path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, four_bit: bool = False
) -> HuggingFaceModel:
    """Read a checkpoint directory of any architecture into a `HuggingFaceModel`. Never runs code that lies in it.

    `four_bit` keeps the linear weights in NF4 (Dettmers et al. 2023, arXiv:2305.14314) and computes in `dtype`: the
    frozen base of an adapter. Raises `UserError` when a package is missing or `transformers` does not know the
    architecture.
    """
    raw = read_json(path / "config.json")
    kind = raw.get("model_type")
    transformers = require_transformers(f"{path}: an architecture that the built-in decoder lacks ({kind})")
    settings: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if four_bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("Four-bit weights need the package bitsandbytes", "pip install 'loopline[qlora]'")
        settings["device_map"] = {"": device}
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    messages = transformers.utils.logging
    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()  # A stage shows its own progress; a second bar would break its lines.
    try:
        module = transformers.AutoModelForCausalLM.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{path}: transformers {transformers.__version__} cannot load this {kind!r} checkpoint ({error})",
            "check the directory, or install a version of transformers that knows the architecture",
        ) from error
    finally:
        if bars:
            messages.enable_progress_bar()
    generation = path / "generation_config.json"
    stored = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype") or "float32"))
    names = tensor_names(path)
    source = Source(raw, read_json(generation) if generation.exists() else None, names, source_dtype(raw, stored))
    return HuggingFaceModel(module if four_bit else module.to(device), source)


def cache_adapter(cache: KeyValueCache, positions_BT: Tensor) -> Any:
    """A `transformers` cache over one of ours: each layer writes at `positions_BT` and gives back everything."""
    whole, layer_class = _cache_classes()
    layers = []
    for keys, values in zip(cache.keys, cache.values, strict=True):
        layer = layer_class()
        layer.keys, layer.values, layer.positions_BT, layer.is_initialized = keys, values, positions_BT, True
        layers.append(layer)
    return whole(layers=layers)


@once
def _cache_classes() -> tuple[Any, Any]:
    from transformers.cache_utils import Cache, CacheLayerMixin

    def update(layer: Any, keys: Tensor, values: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        write_at(layer.keys, keys, layer.positions_BT)
        write_at(layer.values, values, layer.positions_BT)
        return layer.keys, layer.values

    def length(layer: Any) -> int:
        size: int = layer.keys.shape[2]
        return size

    members = {
        "is_sliding": False,
        "update": update,
        "lazy_initialization": lambda *arguments, **named: None,
        "get_mask_sizes": lambda layer, *arguments, **named: (length(layer), 0),
        "get_seq_length": lambda layer: 0,
        "get_max_length": length,
        "get_max_cache_shape": length,
    }
    return Cache, type("PositionLayer", (CacheLayerMixin,), members)


@torch.no_grad()
def probe(model: HuggingFaceModel) -> Abilities:
    """Run a few tokens and see what the module computes as we need it.

    Raises `UserError` when its logits are not what `HuggingFaceModel.logits` makes of its hidden states.
    """
    device = model.output_weight.device
    tokens = torch.arange(1, 8, device=device)[None] % model.config.vocab_size
    out = model.module(input_ids=tokens, use_cache=True)
    alone = model.hidden(tokens, None, None, None)
    # Half-precision modules may take other kernels for other shapes; the tolerance is theirs, a missing scale is not.
    tolerance = 1e-4 if alone.dtype == torch.float32 else 5e-2
    if not torch.allclose(model.logits(alone), out.logits.to(alone.dtype), atol=tolerance, rtol=tolerance):
        raise UserError(
            f"The architecture {model.config.model_type} does more to its scores than an output layer, and what is not "
            "known here",
            "use another architecture",
        )
    keys, values = _cached_shapes(getattr(out, "past_key_values", None), model.config.num_hidden_layers)
    return Abilities(_packs(model, tokens, alone, tolerance), keys, values)


def _packs(model: HuggingFaceModel, tokens: Tensor, alone: Tensor, tolerance: float) -> bool:
    """Whether the seven tokens after three others, in one row, give what they give alone."""
    row = torch.cat((tokens[:, 2:5], tokens), 1)
    owner = torch.tensor([0] * 3 + [1] * 7, device=row.device)
    mask = (owner[:, None] == owner[None]) & torch.ones(10, 10, dtype=torch.bool, device=row.device).tril()
    positions = torch.tensor([[*range(3), *range(7)]], device=row.device)
    try:
        packed = model.hidden(row, positions, mask[None, None], None)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError):
        return False
    # Rounding grows with the largest state: trained models have single ones of 50 and more, often at the first token.
    scale = max(1.0, float(alone.abs().max()))
    return bool(torch.allclose(packed[:, 3:], alone, atol=tolerance * scale, rtol=tolerance))


def _cached_shapes(cache: Any, layers: int) -> tuple[LayerShape | None, LayerShape | None]:
    """Sizes of the cached keys and of the values, where every layer has both in one size."""
    found: list[set[tuple[int, int]]] = [set(), set()]
    cached = list(getattr(cache, "layers", ()))
    for layer in cached:
        for sizes, state in zip(found, (getattr(layer, "keys", None), getattr(layer, "values", None)), strict=True):
            if state is None or state.dim() != 4:
                return None, None
            sizes.add((state.shape[1], state.shape[3]))
    if len(cached) != layers or any(len(sizes) != 1 for sizes in found):
        return None, None
    (keys,), (values,) = found
    return LayerShape(layers, *keys), LayerShape(layers, *values)
