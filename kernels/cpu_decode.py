"""Attention of single query rows over KV pages on the CPU, compiled by numba.

Pages are read where they lie: a tile of tokens is resolved to slots, and whole token rows (all KV
heads) are streamed once for all queries that share them. The KV tokens of all rows, laid end to
end, are cut into equal shares, one a thread, so that any batch keeps all threads busy; rows that
a cut divides are merged by their log-sum-exp (Flash-Decoding; Dao et al., 2023).

All compiled code stands in this one file because numba's disk cache only notices edits to the
file of the function that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 64
_FLAGS = {"reassoc", "contract", "nsz", "arcp", "afn"}
"""No `nnan`: a NaN that is really mapped must come out as one."""

_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-1e30)


def _jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with the disk cache, or without it where no folder can be written."""

    def wrap(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, fastmath=_FLAGS, nogil=True, **options)(function)
        except RuntimeError:
            return numba.njit(fastmath=_FLAGS, nogil=True, **options)(function)

    return wrap


@intrinsic
def _float_of_bits(typing_context, bits):  # type: ignore[no-untyped-def]
    """Reinterpret an int32 as a float32."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


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


@_jit()
def _exp2(x):  # type: ignore[no-untyped-def]
    """2 ** x for x <= 0, by a Taylor polynomial on [-1/2, 1/2]: relative error below 2e-7.

    numba from PyPI has no vector math library; this loop vectorises where `exp` would not.
    The comparison is written so that NaN passes through.
    """
    x = np.float32(-126.0) if x < np.float32(-126.0) else x
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return p * _float_of_bits(np.int32((np.int32(whole) + 127) << 23))


@_jit()
def _fill_slots(slots, start, n, seq, table, starts, page_size):  # type: ignore[no-untyped-def]
    """Slots of the tokens start .. start + n - 1 of a sequence."""
    if page_size == 0:
        for t in range(n):
            slots[t] = starts[seq] + start + t
        return
    t = 0
    while t < n:
        page, offset = divmod(start + t, page_size)
        base = np.int64(table[seq, page]) * page_size + offset
        run = min(page_size - offset, n - t)
        for j in range(run):
            slots[t + j] = base + j
        t += run


@_jit()
def _tile_logits(q, keys, slots, n, num_kv_heads, dim, logits, peak):  # type: ignore[no-untyped-def]
    """logits[h, t] = q[h] . key[t]; peak[h] = max(peak[h], logits[h])."""
    group = q.shape[0] // num_kv_heads
    for t in range(n):
        for kv_head in range(num_kv_heads):
            base = slots[t] * num_kv_heads * dim + kv_head * dim
            h = kv_head * group
            for _ in range(group // 2):
                a = np.float32(0.0)
                b = np.float32(0.0)
                for d in range(dim):
                    k = _widen(keys[base + d])
                    a += q[h, d] * k
                    b += q[h + 1, d] * k
                logits[h, t] = a
                logits[h + 1, t] = b
                peak[h] = a if a > peak[h] else peak[h]
                peak[h + 1] = b if b > peak[h + 1] else peak[h + 1]
                h += 2
            if group % 2:
                a = np.float32(0.0)
                for d in range(dim):
                    a += q[h, d] * _widen(keys[base + d])
                logits[h, t] = a
                peak[h] = a if a > peak[h] else peak[h]


@_jit()
def _tile_values(weights, values, slots, n, num_kv_heads, dim, acc):  # type: ignore[no-untyped-def]
    """acc[h] += sum over t of weights[h, t] * value[t]."""
    num_heads = acc.shape[0]
    group = num_heads // num_kv_heads
    row = num_kv_heads * dim
    t = 0
    while t + 4 <= n:
        s0, s1, s2, s3 = slots[t] * row, slots[t + 1] * row, slots[t + 2] * row, slots[t + 3] * row
        for h in range(num_heads):
            head = h // group * dim
            w0, w1, w2, w3 = (
                weights[h, t],
                weights[h, t + 1],
                weights[h, t + 2],
                weights[h, t + 3],
            )
            for d in range(dim):
                acc[h, d] += (
                    w0 * _widen(values[s0 + head + d])
                    + w1 * _widen(values[s1 + head + d])
                    + w2 * _widen(values[s2 + head + d])
                    + w3 * _widen(values[s3 + head + d])
                )
        t += 4
    while t < n:
        s0 = slots[t] * row
        for h in range(num_heads):
            head = h // group * dim
            for d in range(dim):
                acc[h, d] += weights[h, t] * _widen(values[s0 + head + d])
        t += 1


@_jit()
def _attend(  # type: ignore[no-untyped-def]
    q,
    keys,
    values,
    seq,
    start,
    stop,
    table,
    starts,
    page_size,
    num_kv_heads,
    softcap,
    acc,
    peak,
    total,
):
    """Unnormalised attention of one query row over the tokens start .. stop - 1.

    q (num_heads, dim) is scaled to base-2 logits (to plain ones under softcap). On return
    acc = sum of 2^(logit - peak) * value and total = sum of 2^(logit - peak), for every head.
    """
    num_heads, dim = q.shape
    slots = np.empty(TILE, np.int64)
    logits = np.empty((num_heads, TILE), np.float32)
    new_peak = np.empty(num_heads, np.float32)
    acc[:] = 0
    total[:] = 0
    peak[:] = _LOWEST
    for first in range(start, stop, TILE):
        n = min(TILE, stop - first)
        _fill_slots(slots, first, n, seq, table, starts, page_size)
        new_peak[:] = peak
        _tile_logits(q, keys, slots, n, num_kv_heads, dim, logits, new_peak)
        if softcap != 0:
            double = np.float32(2.0) * _LOG2_E / softcap
            for h in range(num_heads):
                high = peak[h]
                for t in range(n):
                    e = _exp2(-abs(logits[h, t] * double))
                    tanh = (np.float32(1.0) - e) / (np.float32(1.0) + e)
                    x = softcap * _LOG2_E * (tanh if logits[h, t] > 0 else -tanh)
                    logits[h, t] = x
                    high = x if x > high else high
                new_peak[h] = high
        for h in range(num_heads):
            high = new_peak[h]
            added = np.float32(0.0)
            for t in range(n):
                w = _exp2(logits[h, t] - high)
                logits[h, t] = w
                added += w
            if high > peak[h]:
                shrink = _exp2(peak[h] - high)
                for d in range(dim):
                    acc[h, d] *= shrink
                total[h] *= shrink
                peak[h] = high
            total[h] += added
        _tile_values(logits, values, slots, n, num_kv_heads, dim, acc)


@_jit()
def _work(  # type: ignore[no-untyped-def]
    worker,
    num_workers,
    query,
    keys,
    values,
    table,
    starts,
    page_size,
    num_kv_heads,
    rows,
    ends,
    scale,
    softcap,
    out,
    piece_row,
    piece_acc,
    piece_peak,
    piece_total,
):
    """One thread's share of the concatenated KV tokens of all rows.

    rows[r] = (token, sequence, first visible position, one past the last); ends = running sum of
    their lengths. A row wholly inside the share goes to `out`, the pieces at its two ends to
    piece_*[worker].
    """
    num_heads, dim = query.shape[1], query.shape[2]
    all_tokens = ends[-1]
    low = all_tokens * worker // num_workers
    high = all_tokens * (worker + 1) // num_workers
    piece_row[worker, 0] = -1
    piece_row[worker, 1] = -1
    if low == high:
        return
    q = np.empty((num_heads, dim), np.float32)
    acc = np.empty((num_heads, dim), np.float32)
    peak = np.empty(num_heads, np.float32)
    total = np.empty(num_heads, np.float32)
    factor = np.float32(scale) if softcap != 0 else np.float32(scale) * _LOG2_E
    r = np.searchsorted(ends, low, side="right")
    while low < high:
        token, seq, first = rows[r, 0], rows[r, 1], rows[r, 2]
        length = rows[r, 3] - first
        begin = ends[r] - length
        stop = min(high, ends[r])
        for h in range(num_heads):
            for d in range(dim):
                q[h, d] = query[token, h, d] * factor
        _attend(
            q,
            keys,
            values,
            seq,
            first + low - begin,
            first + stop - begin,
            table,
            starts,
            page_size,
            num_kv_heads,
            softcap,
            acc,
            peak,
            total,
        )
        if stop - low == length:
            for h in range(num_heads):
                for d in range(dim):
                    out[token, h, d] = acc[h, d] / total[h]
        else:
            side = 0 if low > begin else 1
            piece_row[worker, side] = r
            piece_acc[worker, side] = acc
            piece_peak[worker, side] = peak
            piece_total[worker, side] = total
        low = stop
        r += 1


@_jit()
def _merge(rows, out, piece_row, piece_acc, piece_peak, piece_total):  # type: ignore[no-untyped-def]
    """Join the pieces of rows that lie across several shares; they follow one another."""
    num_heads, dim = out.shape[1], out.shape[2]
    row = piece_row.reshape(-1)
    acc = piece_acc.reshape((-1, num_heads, dim))
    peak = piece_peak.reshape((-1, num_heads))
    total = piece_total.reshape((-1, num_heads))
    i = 0
    while i < row.size:
        if row[i] < 0:
            i += 1
            continue
        j = i + 1
        last = i
        while j < row.size and (row[j] == row[i] or row[j] < 0):
            last = j if row[j] >= 0 else last
            j += 1
        token = rows[row[i], 0]
        for h in range(num_heads):
            high = _LOWEST
            for p in range(i, last + 1):
                if row[p] >= 0 and peak[p, h] > high:
                    high = peak[p, h]
            weight = np.float32(0.0)
            for d in range(dim):
                out[token, h, d] = 0
            for p in range(i, last + 1):
                if row[p] >= 0:
                    w = _exp2(peak[p, h] - high)
                    weight += w * total[p, h]
                    for d in range(dim):
                        out[token, h, d] += w * acc[p, h, d]
            for d in range(dim):
                out[token, h, d] /= weight
        i = j


@_jit()
def _list_rows(query_start_loc, seq_lens, longest_chunk, window, out):  # type: ignore[no-untyped-def]
    """Rows to compute here, and how many sequences have a longer chunk than `longest_chunk`."""
    rows = np.empty((query_start_loc[-1] + 1, 4), np.int64)
    n = 0
    longer = 0
    for seq in range(seq_lens.size):
        chunk = query_start_loc[seq + 1] - query_start_loc[seq]
        if chunk > longest_chunk:
            longer += 1
            continue
        for j in range(chunk):
            token = query_start_loc[seq] + j
            stop = seq_lens[seq] - chunk + j + 1
            if stop <= 0:
                out[token] = 0
                continue
            rows[n, 0] = token
            rows[n, 1] = seq
            rows[n, 2] = max(0, stop - window) if window > 0 else 0
            rows[n, 3] = stop
            n += 1
    return rows[:n], longer


@_jit(parallel=True)
def decode_rows(  # type: ignore[no-untyped-def]
    workers,
    query,
    keys,
    values,
    table,
    starts,
    page_size,
    num_kv_heads,
    query_start_loc,
    seq_lens,
    longest_chunk,
    scale,
    window,
    softcap,
    out,
):
    """Attention for every sequence with at most `longest_chunk` query tokens.

    query, out: float32 (num_tokens, num_q_heads, head_dim). keys, values: a layer's cache,
    flattened (float32, or 16-bit patterns as `_widen` says). With page_size 0 sequence i lies at
    starts[i], else `table` is read. workers: shares to
    cut the work into, one a thread. window and softcap are 0 for none. Returns the number of
    sequences left out for their longer chunks.
    """
    rows, longer = _list_rows(query_start_loc, seq_lens, longest_chunk, window, out)
    if rows.shape[0] > 0:
        ends = np.cumsum(rows[:, 3] - rows[:, 2])
        num_heads, dim = query.shape[1], query.shape[2]
        piece_row = np.empty((workers, 2), np.int64)
        piece_acc = np.empty((workers, 2, num_heads, dim), np.float32)
        piece_peak = np.empty((workers, 2, num_heads), np.float32)
        piece_total = np.empty((workers, 2, num_heads), np.float32)
        for worker in numba.prange(workers):
            _work(
                worker,
                workers,
                query,
                keys,
                values,
                table,
                starts,
                page_size,
                num_kv_heads,
                rows,
                ends,
                scale,
                softcap,
                out,
                piece_row,
                piece_acc,
                piece_peak,
                piece_total,
            )
        _merge(rows, out, piece_row, piece_acc, piece_peak, piece_total)
    return longer
