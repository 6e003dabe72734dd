"""Attention of single query rows over KV pages on the CPU, compiled by numba.

Pages are read where they lie: a tile of tokens is resolved to slots, and whole token rows (all KV
heads) are streamed once for all queries that share them. The KV tokens of all rows, laid end to
end, are cut into equal shares, one a thread, so that any batch keeps all threads busy; rows that
a cut divides are merged by their log-sum-exp (Flash-Decoding; Dao et al., 2023).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu_compiled import LOG2_E, U, exp2, jit, on_threads

TILE = 32
_PREFETCH_LOCALITY = 3
_LOWEST = np.float32(-1e30)


class KVPages(NamedTuple):
    """A layer's keys and values and where the sequences lie in them.

    keys, values: flattened caches, float32 or 16-bit patterns as `_widen` takes them.
    table: int32 (num_seqs, max_pages), read unless page_size is 0; then sequence i lies at the
        slots from starts[i] on.
    """

    keys: np.ndarray
    values: np.ndarray
    table: np.ndarray
    starts: np.ndarray
    page_size: int
    num_kv_heads: int


class Pieces(NamedTuple):
    """Unnormalised results of rows that a cut divides: at most two a worker, its first and last.

    row: int64 (workers, 2), -1 for none. acc: (workers, 2, heads, dim); peak and total:
    (workers, 2, heads), as `_attend` leaves them.
    """

    row: np.ndarray
    acc: np.ndarray
    peak: np.ndarray
    total: np.ndarray


@intrinsic
def _widen(typing_context, element):  # type: ignore[no-untyped-def]
    """Element of a cache as float32: float32 as it is, uint16 as bfloat16, int16 as float16."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        (value,) = arguments
        if element == types.float32:
            return value
        if element == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        high = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(high, ir.FloatType())

    return types.float32(element), codegen


@intrinsic
def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of a flat array's element, to be read soon."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(array)(context, builder, arguments[0]).data
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, i32(0), i32(_PREFETCH_LOCALITY), i32(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen


@jit
def _fill_slots(slots, start, n, seq, kv):  # type: ignore[no-untyped-def]
    """Slots of the tokens start .. start + n - 1 of a sequence."""
    if kv.page_size == 0:
        for t in range(n):
            slots[t] = kv.starts[seq] + start + t
        return
    t = 0
    while t < n:
        page, offset = divmod(start + t, kv.page_size)
        base = np.int64(kv.table[seq, page]) * kv.page_size + offset
        run = min(kv.page_size - offset, n - t)
        for j in range(run):
            slots[t + j] = base + j
        t += run


@jit
def _prefetch_row(flat, slot, row):  # type: ignore[no-untyped-def]
    line = U(64 // flat.itemsize)
    first = U(slot) * row
    for i in range(row // line):
        _prefetch(flat, first + i * line)


@jit
def _tile_logits(q, keys, slots, coming, n, num_kv_heads, logits, peak):  # type: ignore[no-untyped-def]
    """logits[h, t] = q[h] . key[t]; peak[h] = max(peak[h], logits[h]).

    Two queries of a group share each load of the key.
    """
    dim, kv_heads = U(q.shape[1]), U(num_kv_heads)
    group = U(q.shape[0]) // kv_heads
    for t in range(U(n)):
        _prefetch_row(keys, coming[t], kv_heads * dim)
        for kv_head in range(kv_heads):
            k = (U(slots[t]) * kv_heads + kv_head) * dim
            h = kv_head * group
            for _ in range(group // U(2)):
                g = h + U(1)
                a = np.float32(0.0)
                b = np.float32(0.0)
                for d in range(dim):
                    key = _widen(keys[k + d])
                    a += q[h, d] * key
                    b += q[g, d] * key
                logits[h, t] = a
                logits[g, t] = b
                peak[h] = a if a > peak[h] else peak[h]
                peak[g] = b if b > peak[g] else peak[g]
                h = g + U(1)
            if group % U(2) == U(1):
                a = np.float32(0.0)
                for d in range(dim):
                    a += q[h, d] * _widen(keys[k + d])
                logits[h, t] = a
                peak[h] = a if a > peak[h] else peak[h]


@jit
def _tile_values(weights, values, slots, coming, n, num_kv_heads, acc):  # type: ignore[no-untyped-def]
    """acc[h] += sum over t of weights[h, t] * value[t], four tokens at a time."""
    heads, dim, kv_heads = U(acc.shape[0]), U(acc.shape[1]), U(num_kv_heads)
    group, row = heads // kv_heads, kv_heads * dim
    fours = U(n) // U(4)
    for four in range(fours):
        t = four * U(4)
        t1, t2, t3 = t + U(1), t + U(2), t + U(3)
        for u in (t, t1, t2, t3):
            _prefetch_row(values, coming[u], row)
        v0, v1 = U(slots[t]) * row, U(slots[t1]) * row
        v2, v3 = U(slots[t2]) * row, U(slots[t3]) * row
        for h in range(heads):
            o = h // group * dim
            w0, w1, w2, w3 = weights[h, t], weights[h, t1], weights[h, t2], weights[h, t3]
            for d in range(dim):
                near = w0 * _widen(values[v0 + o + d]) + w1 * _widen(values[v1 + o + d])
                far = w2 * _widen(values[v2 + o + d]) + w3 * _widen(values[v3 + o + d])
                acc[h, d] += near + far
    for t in range(fours * U(4), U(n)):
        v0 = U(slots[t]) * row
        for h in range(heads):
            o = h // group * dim
            w0 = weights[h, t]
            for d in range(dim):
                acc[h, d] += w0 * _widen(values[v0 + o + d])


@jit
def _cap(logits, n, softcap, peak):  # type: ignore[no-untyped-def]
    """Replace plain logits by capped base-2 ones and raise `peak` to their maximum."""
    double = np.float32(2.0) * LOG2_E / softcap
    for h in range(U(logits.shape[0])):
        high = peak[h]
        for t in range(U(n)):
            e = exp2(-abs(logits[h, t] * double))
            tanh = (np.float32(1.0) - e) / (np.float32(1.0) + e)
            logits[h, t] = softcap * LOG2_E * (-tanh if logits[h, t] < 0 else tanh)
            high = logits[h, t] if logits[h, t] > high else high
        peak[h] = high


@jit
def _attend(q, kv, seq, start, stop, softcap, acc, peak, total):  # type: ignore[no-untyped-def]
    """Unnormalised attention of one query row over the tokens start .. stop - 1.

    q (num_heads, dim) is scaled to base-2 logits (to plain ones under softcap). On return
    acc = sum of 2^(logit - peak) * value and total = sum of 2^(logit - peak), for every head.
    """
    heads, dim = U(q.shape[0]), U(q.shape[1])
    slots = np.zeros(TILE, np.int64)
    coming = np.zeros(TILE, np.int64)
    logits = np.empty((q.shape[0], TILE), np.float32)
    plain_peak = np.empty(q.shape[0], np.float32)
    new_peak = np.empty(q.shape[0], np.float32)
    for h in range(heads):
        total[h] = 0
        peak[h] = _LOWEST
        plain_peak[h] = _LOWEST
        for d in range(dim):
            acc[h, d] = 0
    for first in range(start, stop, TILE):
        n = min(TILE, stop - first)
        slots, coming = coming, slots
        if first == start:
            _fill_slots(slots, first, n, seq, kv)
        _fill_slots(coming, first + n, min(TILE, stop - first - n), seq, kv)
        for h in range(heads):
            new_peak[h] = peak[h]
        if softcap == 0:
            _tile_logits(q, kv.keys, slots, coming, n, kv.num_kv_heads, logits, new_peak)
        else:
            _tile_logits(q, kv.keys, slots, coming, n, kv.num_kv_heads, logits, plain_peak)
            _cap(logits, n, softcap, new_peak)
        for h in range(heads):
            high = new_peak[h]
            shrink = exp2(peak[h] - high)
            added = np.float32(0.0)
            for t in range(U(n)):
                w = exp2(logits[h, t] - high)
                logits[h, t] = w
                added += w
            if shrink < 1:
                for d in range(dim):
                    acc[h, d] *= shrink
            total[h] = total[h] * shrink + added
            peak[h] = high
        _tile_values(logits, kv.values, slots, coming, n, kv.num_kv_heads, acc)


@jit
def _work(worker, workers, query, kv, rows, ends, scale, softcap, out, pieces):  # type: ignore[no-untyped-def]
    """One thread's share of the concatenated KV tokens of all rows.

    rows[r] = (token, sequence, first visible position, one past the last); ends = running sum of
    their lengths. A row wholly inside the share goes to `out`, other parts to pieces[worker].
    """
    all_tokens = ends[-1]
    low = all_tokens * worker // workers
    high = all_tokens * (worker + 1) // workers
    pieces.row[worker, 0] = -1
    pieces.row[worker, 1] = -1
    if low == high:
        return
    heads, dim = query.shape[1], query.shape[2]
    q = np.empty((heads, dim), np.float32)
    acc = np.empty((heads, dim), np.float32)
    peak = np.empty(heads, np.float32)
    total = np.empty(heads, np.float32)
    factor = np.float32(scale) if softcap != 0 else np.float32(scale) * LOG2_E
    r = 0
    while ends[r] <= low:
        r += 1
    while low < high:
        token, seq, first = rows[r, 0], rows[r, 1], rows[r, 2]
        length = rows[r, 3] - first
        begin = ends[r] - length
        stop = min(high, ends[r])
        for h in range(heads):
            for d in range(dim):
                q[h, d] = query[token, h, d] * factor
        _attend(q, kv, seq, first + low - begin, first + stop - begin, softcap, acc, peak, total)
        if stop - low == length:
            for h in range(heads):
                for d in range(dim):
                    out[token, h, d] = acc[h, d] / total[h]
        else:
            side = 0 if low > begin else 1
            pieces.row[worker, side] = r
            for h in range(heads):
                pieces.peak[worker, side, h] = peak[h]
                pieces.total[worker, side, h] = total[h]
                for d in range(dim):
                    pieces.acc[worker, side, h, d] = acc[h, d]
        low = stop
        r += 1


@jit
def _merge(rows, out, pieces):  # type: ignore[no-untyped-def]
    """Join the pieces of each divided row; they lie in order, with gaps."""
    heads, dim = out.shape[1], out.shape[2]
    total = np.empty(heads, np.float32)
    peak = np.empty(heads, np.float32)
    current = -1
    for p in range(2 * pieces.row.shape[0]):
        worker, side = p // 2, p % 2
        row = pieces.row[worker, side]
        if row < 0:
            continue
        token = rows[row, 0]
        for h in range(heads):
            if row != current:
                total[h] = 0
                peak[h] = _LOWEST
                for d in range(dim):
                    out[token, h, d] = 0
            added, its_peak = pieces.total[worker, side, h], pieces.peak[worker, side, h]
            high = its_peak if its_peak > peak[h] else peak[h]
            old, new = exp2(peak[h] - high), exp2(its_peak - high)
            whole = total[h] * old + added * new
            old *= total[h] / whole
            new /= whole
            for d in range(dim):
                out[token, h, d] = out[token, h, d] * old + pieces.acc[worker, side, h, d] * new
            total[h] = whole
            peak[h] = high
        current = row


@jit
def _list_rows(query_start_loc, seq_lens, most_rowwise, window, out):  # type: ignore[no-untyped-def]
    """Rows to compute here, the running sum of their KV lengths, and how many sequences are
    left to others. Rows without any context are set to zero at once."""
    rows = np.empty((query_start_loc[-1], 4), np.int64)
    ends = np.empty(query_start_loc[-1], np.int64)
    n = 0
    tokens = 0
    longer = 0
    for seq in range(seq_lens.size):
        chunk = query_start_loc[seq + 1] - query_start_loc[seq]
        if (chunk - 1) * seq_lens[seq] > most_rowwise:
            longer += 1
            continue
        for j in range(chunk):
            token = query_start_loc[seq] + j
            stop = seq_lens[seq] - chunk + j + 1
            if stop <= 0:
                for h in range(out.shape[1]):
                    for d in range(out.shape[2]):
                        out[token, h, d] = 0
                continue
            rows[n, 0] = token
            rows[n, 1] = seq
            rows[n, 2] = stop - window if 0 < window < stop else 0
            rows[n, 3] = stop
            tokens += stop - rows[n, 2]
            ends[n] = tokens
            n += 1
    return rows[:n], ends[:n], longer


_work_on_threads = on_threads(_work)


@jit
def decode_rows(
    workers, query, kv, query_start_loc, seq_lens, most_rowwise, scale, window, softcap, out
):  # type: ignore[no-untyped-def]
    """Attention for every sequence with (query tokens - 1) x context <= `most_rowwise`.

    workers: number of shares to cut the work into, one a thread. query, out: float32
    (num_tokens, num_q_heads, head_dim). kv: KVPages. window and softcap are 0 for none. Returns
    the number of sequences left out.
    """
    rows, ends, longer = _list_rows(query_start_loc, seq_lens, most_rowwise, window, out)
    if len(rows):
        heads, dim = query.shape[1], query.shape[2]
        pieces = Pieces(
            np.empty((workers, 2), np.int64),
            np.empty((workers, 2, heads, dim), np.float32),
            np.empty((workers, 2, heads), np.float32),
            np.empty((workers, 2, heads), np.float32),
        )
        arguments = (query, kv, rows, ends, np.float32(scale), np.float32(softcap), out, pieces)
        _work_on_threads(workers, arguments)
        _merge(rows, out, pieces)
    return longer
