"""The decoding step of a plain decoder on the CPU: one call of `inference.kernels.run`, by several threads at once.

    step = CompiledStep(model, slots, threads=2)
    step(slots)

The weights are kept a second time, packed as the kernels read them, and packed anew when they change. Layers of experts
are computed by their module between two calls. A row's scores are the same bits whatever other rows there are and
however many threads compute them; they differ from `Decoder.forward`'s in the rounding of sums. Not covered: other
devices and types than single precision on the CPU, heads whose channels are no multiple of 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopline.compute.team import Team
from loopline.inference import kernels
from loopline.inference.slots import Slots
from loopline.model.cache import KeyValueCache
from loopline.model.decoder import Block, Decoder, FeedForward

THREAD_WORK = 8_000_000
"""Multiplications from which another thread is worth waking: waking it takes some 50 microseconds."""
THREAD_WEIGHTS = 100_000
"""Numbers of a matrix from which another thread is worth using to pack it."""
CHUNK = 256
"""Tokens of prompts that are computed at once."""


class Packing:
    """All weights of a decoder in one array, and where each begins; -1 for those it does not have."""

    def __init__(self, model: Decoder, team: Team) -> None:
        self.found: list[tuple[Tensor, int, bool]] = []
        self.size = 0
        rows = [self._block(block) for block in model.blocks if isinstance(block, Block)]
        last = [self._put(model.norm.weight), self._put(model.output_weight, matrix=True)]
        width = max(map(len, [*rows, last]))
        self.places = np.array([row + [-1] * (width - len(row)) for row in [*rows, last]], dtype=np.int64)
        self.weights = np.empty(self.size, dtype=np.float32)
        for tensor, at, matrix in self.found:
            array = tensor.detach().numpy()
            if matrix:
                panels, length = -(-len(array) // kernels.WIDTH), array.shape[1]
                out = self.weights[at : at + panels * length * kernels.WIDTH].reshape(panels, length, kernels.WIDTH)
                team(kernels.pack, team.size if array.size > THREAD_WEIGHTS else 1, array, out)
            else:
                self.weights[at : at + array.size] = array.reshape(-1)
        self.found = []

    def _put(self, tensor: Tensor | None, matrix: bool = False) -> int:
        if tensor is None:
            return -1
        at = self.size
        self.found.append((tensor, at, matrix))
        size = tensor.numel()
        self.size += -(-len(tensor) // kernels.WIDTH) * kernels.WIDTH * tensor.shape[1] if matrix else size
        return at

    def _layer(self, weight: Tensor, bias: Tensor | None) -> list[int]:
        return [self._put(weight, matrix=True), self._put(bias)]

    def _block(self, block: Block) -> list[int]:
        attention, feed_forward = block.attention, block.feed_forward
        row = [self._put(block.attention_norm.weight)]
        row += self._layer(attention.qkv.weight, attention.qkv.bias)
        row += [self._put(None if norm is None else norm.weight) for norm in (attention.q_norm, attention.k_norm)]
        row += self._layer(attention.out.weight, attention.out.bias)
        row.append(self._put(block.feed_forward_norm.weight))
        if isinstance(feed_forward, FeedForward):
            both = feed_forward.gate_up
            biases = (None, None) if both.bias is None else both.bias.chunk(2)
            for weight, bias in zip(both.weight.chunk(2), biases, strict=True):
                row += self._layer(weight, bias)
            row += self._layer(feed_forward.down.weight, feed_forward.down.bias)
        return row


def spans(model: Decoder) -> Iterator[tuple[int, int, nn.Module | None]]:
    """Layers that one call computes, and the experts that follow its last one."""
    first = 0
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if not isinstance(block.feed_forward, FeedForward):
            yield first, number + 1, block.feed_forward
            first = number + 1
    yield first, len(model.blocks), None


class CompiledStep:
    """A plain decoder's step over up to `rows` rows, by as many threads of `team` as its size is worth."""

    def __init__(self, model: Decoder, rows: int, team: Team) -> None:
        self.model, self.team, config = model, team, model.config
        rows = max(rows, CHUNK)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        widths = [config.hidden_size, config.hidden_size, (self.heads + 2 * self.groups) * config.head_dim]
        widths += [self.heads * config.head_dim, config.intermediate_size]
        self.buffers = [np.zeros((rows, width), dtype=np.float32) for width in widths]
        self.spare = np.empty((2, team.size, rows, kernels.WIDTH), dtype=np.float32)
        self.room = np.empty((team.size, self.heads // self.groups, 0), dtype=np.float32)
        self.meet = np.zeros(1, dtype=np.int64)
        """How often threads have arrived where they wait for each other."""
        self.own = np.arange(rows)
        self.spans = list(spans(model))
        self.parameters = list(model.parameters())
        self.multiplications = sum(parameter.numel() for parameter in self.parameters)
        self.state: tuple[tuple[int, int], ...] | None = None

    def __call__(self, slots: Slots) -> None:
        rows = slots.running
        slots.reserve(int(slots.at[:rows].max()) + 1)
        self._pack()
        tokens, own, at = slots.tokens[:rows], self.own[:rows], slots.at[:rows]
        arguments = self._arguments(tokens, own, at, slots.logits, slots.cache, shared=False)
        self._layers(arguments, rows, finish=True)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[KeyValueCache, Tensor]:
        """Keys and values of `prompts`, a row each, zeros after its end, and the scores (B, V) of what follows each."""
        self._pack()
        model, sizes = self.model, [len(prompt) for prompt in prompts]
        # Keys are read by vectors' worth, also where a row ends within one.
        length = -(-max(sizes) // kernels.LANES) * kernels.LANES
        cache, logits = model.new_cache(len(prompts), length), torch.empty(len(prompts), model.config.vocab_size)
        tokens = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts])
        rows = np.repeat(np.arange(len(prompts)), sizes)
        at = np.concatenate([np.arange(size) for size in sizes])
        ends, x, layers = np.cumsum(sizes) - 1, self.buffers[0], len(model.blocks)
        for start in range(0, len(tokens), CHUNK):
            part = slice(start, start + CHUNK)
            arguments = self._arguments(tokens[part], rows[part], at[part], logits, cache, shared=True)
            self._layers(arguments, len(tokens[part]), finish=False)
            ended = np.nonzero((ends >= start) & (ends < start + CHUNK))[0]
            if len(ended):
                x[: len(ended)] = x[ends[ended] - start]
                scores = logits[ended[0] : ended[-1] + 1]
                arguments = self._arguments(tokens[ended], ended, at[ended], scores, cache, shared=False)
                self._run(len(ended), arguments, layers, layers, False, True)
        return cache, logits

    def _pack(self) -> None:
        """Follow weights that changed."""
        # A tensor counts its changes, whoever makes them: an optimizer, or new weights that are loaded. Only tensors
        # made in inference mode do not, so they are packed at every step.
        state = None
        if not any(parameter.is_inference() for parameter in self.parameters):
            state = tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters)
        if state is None or state != self.state:
            self.state, model = state, self.model
            packing = Packing(model, self.team)
            scale = np.float32(model.config.head_dim**-0.5)
            tables = (model.cos.numpy(), model.sin.numpy(), model.embedding.weight.detach().numpy())
            self.weights = (packing.weights, packing.places, np.float32(model.config.rms_norm_eps), scale, tables)

    def _arguments(
        self, tokens: np.ndarray, slots: np.ndarray, at: np.ndarray, logits: Tensor, cache: KeyValueCache, shared: bool
    ) -> tuple[Any, ...]:
        """What `run` needs to know about these rows."""
        rows, length = len(tokens), cache.length + kernels.LANES
        if self.room.shape[2] < length:
            self.room = np.empty((*self.room.shape[:2], length), dtype=np.float32)
        buffers = (*(buffer[:rows] for buffer in self.buffers), logits[:rows].numpy(), self.room, *self.spare)
        return (*self.weights, tokens, slots, at, buffers, cache.keys.numpy(), cache.values.numpy(), shared)

    def _layers(self, arguments: tuple[Any, ...], rows: int, finish: bool) -> None:
        """All layers for these rows, and with `finish` their scores."""
        for first, last, experts in self.spans:
            self._run(rows, arguments, first, last, experts is not None, finish and experts is None)
            if experts is not None:
                x, normed = (torch.from_numpy(buffer[:rows]) for buffer in self.buffers[:2])
                x += experts(normed[:, None])[:, 0]

    def _run(self, rows: int, arguments: tuple[Any, ...], *layers: int) -> None:
        parts = max(1, min(self.team.size, rows * self.multiplications // THREAD_WORK))
        self.meet[0] = 0
        self.team(kernels.run, parts, self.meet, *arguments, *layers, release=self._release)

    def _release(self) -> None:
        self.meet[0] = kernels.RELEASED
