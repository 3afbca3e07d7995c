"""The decoding step of a plain decoder, compiled: all layers of a step in one call that holds no interpreter lock.

    run(part, parts, meet, sizes, weights, places, ..., first, last, sparse, finish)

Compiled by numba at the first use and kept on disk. Each of `parts` threads calls `run` with its own `part`; they
divide the columns of products and the rows of everything else, and wait for each other in between. Every sum over a row
is made in one order, whatever the number of threads and of other rows, so a row's scores depend on nothing beside it.
No arithmetic is left to the compiler's choice: it makes several versions of a function, and which of them runs is not
the same in the process that compiled it and in one that loads it.

A product takes weights packed in panels of `WIDTH` columns, (panels, inputs, WIDTH), and holds 4 rows' sums of a panel
in registers: on one core of a processor with AVX2 it gave 90 to 105 GFLOP/s from 8 rows on, where torch's `mm` gave 37
to 85. All that is compiled stands in this file, since numba's store on disk looks at a function's own file alone.
Not covered: types other than single precision, channels of a head that are no multiple of 8, layers of experts
(the caller's).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
"""Numbers of a vector."""
VECTORS = 3
WIDTH = LANES * VECTORS
"""Columns of a panel: with 4 rows, 12 sums, 3 weights and an input fill the 16 registers of AVX2."""
BLOCK = 64
"""Tokens of the vocabulary that are summed as one before the search inside them."""
PLAIN, ADDED = np.int64(0), np.int64(1)
"""Whether a product replaces what is there or is added to it. Of one type, so that it is compiled once."""
RELEASED = 2**62
"""Arrivals for which nobody waits any more."""
PATIENCE = 2000
"""Looks at the others' progress before the thread offers its core to somebody else."""
FLOAT, DOUBLE, INT, WORD = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(32)
VECTOR, WIDE = ir.VectorType(FLOAT, LANES), ir.VectorType(DOUBLE, LANES)
UNDEFINED = ir.Constant(VECTOR, ir.Undefined)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled without the interpreter's lock; kept on disk where there is a place for it."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


def _fma(builder: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")


def _load(builder: Any, pointer: Any, offset: Any) -> Any:
    at = builder.bitcast(builder.gep(pointer, [offset]), VECTOR.as_pointer())
    return builder.load(at, align=4)


def _store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    at = builder.bitcast(builder.gep(pointer, [offset]), VECTOR.as_pointer())
    builder.store(value, at, align=4)


def _loop(builder: Any, count: Any, begin: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """The vectors that `body(index, vectors)` makes of `begin` in `count` rounds, one at least."""
    before = builder.block
    kind = begin[0].type
    head, after = builder.append_basic_block("head"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INT)
    index.add_incoming(INT(0), before)
    held = [builder.phi(kind) for _ in begin]
    for one, value in zip(held, begin, strict=True):
        one.add_incoming(value, before)
    new = body(index, held)
    following = builder.add(index, INT(1))
    index.add_incoming(following, head)
    for one, value in zip(held, new, strict=True):
        one.add_incoming(value, head)
    builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    builder.position_at_end(after)
    return new


def _block(rows: int, vectors: int) -> Any:
    """`rows` rows of x (rows, x_step) times a matrix of `vectors * LANES` columns (length, w_step), into out.

    With `add` the product is added to what `out` holds.
    """

    @intrinsic
    def block(
        typing: Any, x: Any, x_step: Any, w: Any, w_step: Any, out: Any, out_step: Any, length: Any, add: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x_step, w, w_step, out, out_step, length, add = arguments
            x, w, out = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (x, w, out))
            fma = _fma(builder)
            starts = [builder.gep(x, [builder.mul(x_step, INT(row))]) for row in range(rows)]

            def body(index: Any, sums: list[Any]) -> list[Any]:
                base = builder.mul(index, w_step)
                weights = [_load(builder, w, builder.add(base, INT(LANES * v))) for v in range(vectors)]
                new = []
                for row in range(rows):
                    one = builder.load(builder.gep(starts[row], [index]))
                    first = builder.insert_element(UNDEFINED, one, WORD(0))
                    spread = ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)
                    spread = builder.shuffle_vector(first, UNDEFINED, spread)
                    new += [builder.call(fma, [spread, weights[v], sums[row * vectors + v]]) for v in range(vectors)]
                return new

            outs = [
                builder.add(builder.mul(out_step, INT(row)), INT(LANES * v))
                for row in range(rows)
                for v in range(vectors)
            ]
            held = builder.icmp_signed("!=", add, INT(0))
            begin = [builder.select(held, _load(builder, out, place), ZERO) for place in outs]
            for place, value in zip(outs, _loop(builder, length, begin, body), strict=True):
                _store(builder, value, out, place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return block


four, three, two, one = (_block(rows, VECTORS) for rows in (4, 3, 2, 1))
wide_four, wide_three, wide_two, wide_one = (_block(rows, 2) for rows in (4, 3, 2, 1))
narrow_one = _block(1, 1)


@intrinsic
def scores(typing: Any, query: Any, keys: Any, step: Any, vectors: Any, out: Any) -> Any:
    """The query (vectors * LANES,) times each of `LANES` keys (LANES, step), into out (LANES,)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query, keys, step, vectors, out = arguments
        query, keys, out = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (query, keys, out))
        fma = _fma(builder)
        starts = [builder.gep(keys, [builder.mul(step, INT(key))]) for key in range(LANES)]

        def body(index: Any, sums: list[Any]) -> list[Any]:
            offset = builder.mul(index, INT(LANES))
            part = _load(builder, query, offset)
            return [builder.call(fma, [part, _load(builder, starts[key], offset), sums[key]]) for key in range(LANES)]

        def together(a: Any, b: Any, left: list[int], right: list[int]) -> Any:
            masks = [ir.Constant(ir.VectorType(WORD, LANES), mask) for mask in (left, right)]
            return builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))

        held = _loop(builder, vectors, [ZERO] * LANES, body)
        # Neighbours' halves, quarters and eighths are added, so that sum k comes to stand in place k.
        pairs = [([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15])]
        pairs += [([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])]
        pairs += [([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])]
        for left, right in pairs:
            held = [together(a, b, left, right) for a, b in zip(held[::2], held[1::2], strict=True)]
        _store(builder, held[0], out, INT(0))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _halve(builder: Any, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """One number of a vector's: its halves are joined until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        half = [*range(width, 2 * width), *[0] * (LANES - width)]
        other = builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(WORD, LANES), half))
        vector = join(vector, other)
    return builder.extract_element(vector, WORD(0))


def _sum(kind: Any, squares: bool = False) -> Any:
    """The sum of `vectors * LANES` numbers, one vector at least: a sum for each lane, and those by halves."""

    @intrinsic
    def sum_of(typing: Any, numbers: Any, vectors: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = builder.inttoptr(arguments[0], FLOAT.as_pointer())
            fma = _fma(builder)

            def body(index: Any, held: list[Any]) -> list[Any]:
                one = _load(builder, numbers, builder.mul(index, INT(LANES)))
                if squares:
                    return [builder.call(fma, [one, one, held[0]])]
                return [builder.fadd(one if kind is VECTOR else builder.fpext(one, kind), held[0])]

            zeros = ir.Constant(kind, [0.0] * LANES)
            return _halve(builder, _loop(builder, arguments[1], [zeros], body)[0], builder.fadd)

        return (types.float32 if kind is VECTOR else types.float64)(types.intp, types.intp), generate

    return sum_of


sum_of, sum_of_squares, wide_sum_of = _sum(VECTOR), _sum(VECTOR, squares=True), _sum(WIDE)


@intrinsic
def most_of(typing: Any, numbers: Any, vectors: Any) -> Any:
    """The largest of `vectors * LANES` numbers, one vector at least; what is no number may be passed over."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = builder.inttoptr(arguments[0], FLOAT.as_pointer())

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def body(index: Any, held: list[Any]) -> list[Any]:
            return [larger(_load(builder, numbers, builder.mul(index, INT(LANES))), held[0])]

        return _halve(builder, _loop(builder, arguments[1], [_load(builder, numbers, INT(0))], body)[0], larger)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def arrive(typing: Any, address: Any) -> Any:
    """Add one to the number at `address`, seen by all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], INT.as_pointer())
        return builder.atomic_rmw("add", pointer, INT(1), "seq_cst")

    return types.int64(types.intp), generate


@intrinsic
def arrived(typing: Any, address: Any) -> Any:
    """The number at `address`, as the other threads left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], INT.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.intp), generate


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, by its bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.add(arguments[0], WORD(127)), WORD(23))
        return builder.bitcast(bits, FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def fused(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32"), arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


offer_core = types.ExternalFunction("sched_yield", types.int32())


@compiled
def wait(meet: int, count: int) -> None:
    """Return when `count` arrivals were counted at `meet`."""
    looks = 0
    while arrived(meet) < count:
        looks += 1
        if looks > PATIENCE:
            offer_core()


@numba.njit(nogil=True, inline="always")
def exp(x):
    """e to x in single precision, within two units of the last place."""
    x = np.float32(-87.0) if x < np.float32(-87.0) else (np.float32(88.0) if x > np.float32(88.0) else x)
    turns = x * np.float32(1.4426950408889634)
    whole = np.int32(turns + (np.float32(0.5) if turns >= 0 else np.float32(-0.5)))
    left = fused(np.float32(whole), np.float32(-0.693359375), x)
    left = fused(np.float32(whole), np.float32(2.12194440e-4), left)
    found = np.float32(1.9875691500e-4)
    found = fused(found, left, np.float32(1.3981999507e-3))
    found = fused(found, left, np.float32(8.3334519073e-3))
    found = fused(found, left, np.float32(4.1665795894e-2))
    found = fused(found, left, np.float32(1.6666665459e-1))
    found = fused(found, left, np.float32(5.0000001201e-1))
    found = fused(found, left * left, left) + np.float32(1.0)
    return found * power_of_two(whole)


@compiled
def pack(part, parts, weight, out):
    """This part's panels of a matrix (O, I) into out (panels, I, WIDTH); zeros where its rows end within a panel."""
    columns, length = weight.shape
    panels = len(out)
    for number in range(panels * part // parts, panels * (part + 1) // parts):
        first = number * WIDTH
        width = min(WIDTH, columns - first)
        for start in range(0, length, WIDTH):
            # A square at a time, so that what is read along columns stays at hand for the rows.
            for place in range(start, min(start + WIDTH, length)):
                for column in range(width):
                    out[number, place, column] = weight[first + column, place]
                for column in range(width, WIDTH):
                    out[number, place, column] = np.float32(0.0)


@compiled
def panel(x, rows, length, w, out, step, add):
    """x (rows, length) times one panel (length, WIDTH) into WIDTH columns of out (rows, step); addresses."""
    row = 0
    while row + 4 <= rows:
        four(x, length, w, WIDTH, out, step, length, add)
        row, x, out = row + 4, x + 16 * length, out + 16 * step
    if rows - row == 3:
        three(x, length, w, WIDTH, out, step, length, add)
    elif rows - row == 2:
        two(x, length, w, WIDTH, out, step, length, add)
    elif rows - row == 1:
        one(x, length, w, WIDTH, out, step, length, add)


@compiled
def product(part, parts, x, weights, place, bias, out, add, spare):
    """A linear layer of x into this part's columns of `out`, or added to them."""
    rows, length = x.shape
    columns = out.shape[1]
    panels = -(-columns // WIDTH)
    for number in range(panels * part // parts, panels * (part + 1) // parts):
        first = number * WIDTH
        width = min(WIDTH, columns - first)
        inputs, w = np.int64(x.ctypes.data), np.int64(weights.ctypes.data) + 4 * (place + first * length)
        if width == WIDTH:
            panel(inputs, rows, length, w, np.int64(out.ctypes.data) + 4 * first, columns, add)
        else:
            panel(inputs, rows, length, w, np.int64(spare.ctypes.data), np.int64(WIDTH), PLAIN)
            for row in range(rows):
                for column in range(width):
                    before = out[row, first + column] if add else np.float32(0.0)
                    out[row, first + column] = before + spare[row, column]
        if bias >= 0:
            for row in range(rows):
                for column in range(width):
                    out[row, first + column] += weights[bias + first + column]


@compiled
def gate(part, parts, x, weights, gate_place, gate_bias, up_place, up_bias, out, left, right):
    """silu(gate) times up, of this part's columns of the feed-forward layer."""
    rows, length = x.shape
    columns = out.shape[1]
    panels = -(-columns // WIDTH)
    for number in range(panels * part // parts, panels * (part + 1) // parts):
        first = number * WIDTH
        width = min(WIDTH, columns - first)
        inputs, base, step = (
            np.int64(x.ctypes.data),
            np.int64(weights.ctypes.data) + 4 * first * length,
            np.int64(WIDTH),
        )
        panel(inputs, rows, length, base + 4 * gate_place, np.int64(left.ctypes.data), step, PLAIN)
        panel(inputs, rows, length, base + 4 * up_place, np.int64(right.ctypes.data), step, PLAIN)
        if gate_bias >= 0:
            for row in range(rows):
                for column in range(width):
                    left[row, column] += weights[gate_bias + first + column]
                    right[row, column] += weights[up_bias + first + column]
        for place in range(rows * WIDTH):
            value = left.flat[place]
            right.flat[place] *= value / (np.float32(1.0) + exp(-value))
        for row in range(rows):
            for column in range(width):
                out[row, first + column] = right[row, column]


@compiled
def normalize(x, weights, place, eps, out):
    """RMSNorm of one row."""
    vectors = len(x) // LANES
    total = sum_of_squares(x.ctypes.data, vectors) if vectors else np.float32(0.0)
    for column in range(LANES * vectors, len(x)):
        total += x[column] * x[column]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(len(x)) + eps)
    for column in range(len(x)):
        out[column] = x[column] * scale * weights[place + column]


@compiled
def normalize_rows(part, parts, x, weights, place, eps, out):
    """RMSNorm of this part's rows."""
    for row in range(part, len(x), parts):
        normalize(x[row], weights, place, eps, out[row])


@compiled
def turn(head, cos, sin):
    """Rotate one head's channels by the angles of its position."""
    half = len(cos)
    for channel in range(half):
        left, right = head[channel], head[half + channel]
        head[channel] = left * cos[channel] - right * sin[channel]
        head[half + channel] = right * cos[channel] + left * sin[channel]


@compiled
def largest(row, count):
    """The largest of the first `count` numbers."""
    vectors = count // LANES
    most = most_of(row.ctypes.data, vectors) if vectors else row[0]
    for place in range(LANES * vectors, count):
        most = row[place] if row[place] > most else most
    return most


@compiled
def soften(row, count):
    """Softmax of the first `count` numbers."""
    most, vectors = largest(row, count), count // LANES
    for place in range(count):
        # Shares below e^-60 count for nothing, and what is too small for a normal number is slow to compute with.
        row[place] = exp(max(row[place] - most, np.float32(-60.0)))
    total = sum_of(row.ctypes.data, vectors) if vectors else np.float32(0.0)
    for place in range(LANES * vectors, count):
        total += row[place]
    scale = np.float32(1.0) / total
    for place in range(count):
        row[place] *= scale


@compiled
def prepare(qkv, heads, weights, q_norm, k_norm, eps, scale, cos, sin, keys, values, position):
    """Normalize and rotate a row's qkv (heads + 2 groups, C), and put its keys and values (groups, S, C) in place."""
    groups, channels = keys.shape[0], qkv.shape[1]
    for head in range(heads + groups):
        norm = q_norm if head < heads else k_norm
        row = qkv[head]
        if norm >= 0:
            normalize(row, weights, norm, eps, row)
        turn(row, cos, sin)
        if head < heads:
            for channel in range(channels):
                row[channel] *= scale
    for group in range(groups):
        for channel in range(channels):
            keys[group, position, channel] = qkv[heads + group, channel]
            values[group, position, channel] = qkv[heads + groups + group, channel]


@compiled
def attend(qkv, heads, keys, values, count, out, room):
    """Attention of a row over `count` positions: its queries are qkv (heads, C); keys and values (groups, S, C)."""
    groups, _, channels = keys.shape
    repeats = heads // groups
    for group in range(groups):
        for repeat in range(repeats):
            query = qkv[group * repeats + repeat].ctypes.data
            first, into = keys[group].ctypes.data, room[repeat].ctypes.data
            for place in range(0, count, LANES):
                scores(query, first + 4 * place * channels, channels, channels // LANES, into + 4 * place)
            soften(room[repeat], count)
        base, step, into = values[group].ctypes.data, room.strides[0] // 4, out[group * repeats].ctypes.data
        for channel in range(0, channels - LANES, 2 * LANES):
            w, row = base + 4 * channel, 0
            while row < repeats:
                p, o = room.ctypes.data + 4 * row * step, into + 4 * (row * channels + channel)
                if repeats - row >= 4:
                    wide_four(p, step, w, channels, o, channels, count, 0)
                    row += 4
                elif repeats - row == 3:
                    wide_three(p, step, w, channels, o, channels, count, 0)
                    row += 3
                elif repeats - row == 2:
                    wide_two(p, step, w, channels, o, channels, count, 0)
                    row += 2
                else:
                    wide_one(p, step, w, channels, o, channels, count, 0)
                    row += 1
        if channels % (2 * LANES):
            last = channels - LANES
            for row in range(repeats):
                p, o = room.ctypes.data + 4 * row * step, into + 4 * (row * channels + last)
                narrow_one(p, step, base + 4 * last, channels, o, channels, count, 0)


@compiled
def rotate(part, parts, qkv, weights, p, eps, scale, cos, sin, keys, values, slots, at):
    """`prepare` this part's rows; `p` says where the layer's weights begin."""
    groups, channels = keys.shape[1], keys.shape[3]
    for row in range(part, len(qkv), parts):
        by_head, position = qkv[row].reshape(-1, channels), at[row]
        k, v = keys[slots[row]], values[slots[row]]
        heads = len(by_head) - 2 * groups
        prepare(by_head, heads, weights, p[3], p[4], eps, scale, cos[position], sin[position], k, v, position)


@compiled
def look_back(part, parts, qkv, keys, values, slots, at, out, room):
    """`attend` for this part's rows."""
    channels = keys.shape[3]
    for row in range(part, len(qkv), parts):
        to = out[row].reshape(-1, channels)
        by_head = qkv[row].reshape(-1, channels)
        attend(by_head, len(to), keys[slots[row]], values[slots[row]], at[row] + 1, to, room)


@compiled
def meet_others(meet, parts, met):
    """Wait until all threads have come here; returns the arrivals so far."""
    if parts > 1:
        arrive(meet.ctypes.data)
        wait(meet.ctypes.data, met + parts)
    return met + parts


@compiled
def run(
    part,
    parts,
    meet,
    weights,
    places,
    eps,
    scale,
    tables,
    tokens,
    slots,
    at,
    buffers,
    keys,
    values,
    shared,
    first,
    last,
    sparse,
    finish,
):
    """One thread's part of layers `first` to `last` - 1, for all rows.

    `meet` (1,) is zero at first and the same for all threads. `weights` is flat; `places` says where each layer's
    begin, in the order of `compiled_step.Packing`. Row r feeds `tokens[r]` at position `at[r]` of `slots[r]` of the
    cache; `shared` says that rows may be of one slot. `tables`: cos and sin (positions, C/2), embedding (V, D).
    `buffers`: x, normed (rows, D), qkv (rows, (H + 2 K) C), attended (rows, H C), gated (rows, F), scores (rows, V);
    for each thread the scores of a position's queries (H / K, S), and twice a panel of sums (rows, WIDTH). With
    `sparse` it ends before the last layer's feed-forward part, whose input is in `normed`; with `finish`, with scores.
    """
    cos, sin, embedding = tables
    x, normed, qkv, attended, gated, logits, room, panels, others = buffers
    rows = len(x)
    mine, other = panels[part], others[part]
    met = np.int64(0)
    if first == 0:
        for row in range(part, rows, parts):
            for column in range(x.shape[1]):
                x[row, column] = embedding[tokens[row], column]
    for layer in range(first, last):
        p = places[layer]
        normalize_rows(part, parts, x, weights, p[0], eps, normed)
        met = meet_others(meet, parts, met)
        product(part, parts, normed, weights, p[1], p[2], qkv, PLAIN, mine)
        met = meet_others(meet, parts, met)
        rotate(part, parts, qkv, weights, p, eps, scale, cos, sin, keys[layer], values[layer], slots, at)
        if shared:
            met = meet_others(meet, parts, met)
        look_back(part, parts, qkv, keys[layer], values[layer], slots, at, attended, room[part])
        met = meet_others(meet, parts, met)
        product(part, parts, attended, weights, p[5], p[6], x, ADDED, mine)
        met = meet_others(meet, parts, met)
        normalize_rows(part, parts, x, weights, p[7], eps, normed)
        met = meet_others(meet, parts, met)
        if sparse and layer == last - 1:
            return
        gate(part, parts, normed, weights, p[8], p[9], p[10], p[11], gated, mine, other)
        met = meet_others(meet, parts, met)
        product(part, parts, gated, weights, p[12], p[13], x, ADDED, mine)
        met = meet_others(meet, parts, met)
    if finish:
        p = places[len(places) - 1]
        normalize_rows(part, parts, x, weights, p[0], eps, normed)
        met = meet_others(meet, parts, met)
        product(part, parts, normed, weights, p[1], p[2], logits, PLAIN, mine)


@compiled
def wide_sum(numbers, first, last):
    """The sum of numbers[first:last] in double precision."""
    vectors = (last - first) // LANES
    total = wide_sum_of(numbers.ctypes.data + 4 * first, vectors) if vectors else 0.0
    for place in range(first + LANES * vectors, last):
        total += numbers[place]
    return total


@compiled
def choose(part, parts, logits, temperature, uniforms, room, tokens, logprobs):
    """Invert each row's cumulative distribution (rows, V) at its uniform number; float64 sums, in blocks.

    Writes the token and its log-prob at the temperature. `room` (parts, V). What is not finite gives a log-prob of nan.
    """
    size, mine = logits.shape[1], room[part]
    for row in range(part, len(logits), parts):
        scores_ = logits[row]
        most = largest(scores_, size)
        for token in range(size):
            away = (scores_[token] - most) / temperature
            mine[token] = np.float32(0.0) if away < np.float32(-87.0) else exp(away)
        total = 0.0
        for first in range(0, size, BLOCK):
            total += wide_sum(mine, first, min(first + BLOCK, size))
        threshold, before, chosen = uniforms[row] * total, 0.0, -1
        for first in range(0, size, BLOCK):
            last = min(first + BLOCK, size)
            block = wide_sum(mine, first, last)
            if before + block > threshold or last == size:
                reached = before
                for token in range(first, last):
                    reached += mine[token]
                    if mine[token] > 0:
                        chosen = token
                        if reached > threshold:
                            break
                break
            before += block
        if chosen < 0:
            # Only a rounded threshold comes past everything that has mass, or no score is a number.
            chosen = size - 1
            while chosen > 0 and not mine[chosen] > 0:
                chosen -= 1
        tokens[row] = chosen
        logprobs[row] = (scores_[chosen] - most) / temperature - np.float32(np.log(total))
