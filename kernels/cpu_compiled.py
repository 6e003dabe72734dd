"""What the CPU kernels share: how numba compiles them, 2 ** x, and torch's own OpenMP threads.

numba's thread pool would be a second one beside torch's: each pool's idle threads wait for work on
the cores that the other's need.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLAGS = {"reassoc", "contract", "nsz", "arcp", "afn"}
"""No `nnan`: a NaN that is really mapped must come out as one."""

LOG2_E = np.float32(1.4426950408889634)

U = np.uint64
"""Loop counters and indices are unsigned: for signed ones numba tests every access for a negative
index that counts from the end, and the loop no longer vectorises (five times slower)."""

_START = "kvarena_start_threads"
_NUMBER = "kvarena_thread_number"
_COUNT = "kvarena_num_threads"


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
def _start_one(function: int, data: int, _threads: int, _flags: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)


@ctypes.CFUNCTYPE(ctypes.c_int)
def _number_of_one() -> int:
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int)
def _count_of_one() -> int:
    return 1


_library = ctypes.CDLL(None)  # torch loads its OpenMP runtime for the whole process to see
_has_openmp = hasattr(_library, "GOMP_parallel")
_functions = {_START: _start_one, _NUMBER: _number_of_one, _COUNT: _count_of_one}
if _has_openmp:
    _functions = {
        _START: _library.GOMP_parallel,
        _NUMBER: _library.omp_get_thread_num,
        _COUNT: _library.omp_get_num_threads,
    }
for _name, _function in _functions.items():
    llvmlite.binding.add_symbol(_name, ctypes.cast(_function, ctypes.c_void_p).value)


def num_threads() -> int:
    """How many `on_threads` may start: those of torch."""
    return torch.get_num_threads() if _has_openmp else 1


def on_threads(work: Callable[..., None]) -> Any:
    """`work(thread, threads, *arguments)`, compiled by numba, as a function for compiled code:
    `start(threads, arguments)` calls it for each `thread` below `threads`, each on a thread of its
    own if OpenMP grants so many, and returns when all are done. Raises RuntimeError where a call
    raises anything."""

    def share(number, granted, threads, arguments):  # type: ignore[no-untyped-def]
        for thread in range(number, threads, granted):
            work(thread, threads, *arguments)

    @intrinsic
    def start(typing_context, threads, arguments):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            signature = types.void(types.int64, types.int64, types.int64, arguments)
            compiled = context.compile_subroutine(builder, share, signature)
            i32, i64, byte = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
            shared = ir.LiteralStructType([i64, context.get_value_type(arguments), i32])
            place = cgutils.alloca_once(builder, shared)
            count = context.cast(builder, values[0], threads, types.int64)
            builder.store(count, builder.gep(place, [i32(0), i32(0)]))
            builder.store(values[1], builder.gep(place, [i32(0), i32(1)]))
            builder.store(i32(0), builder.gep(place, [i32(0), i32(2)]))
            # one thread's call, which OpenMP makes with the address of `shared`
            kind = ir.FunctionType(ir.VoidType(), [byte])
            name = builder.module.get_unique_name(f"{builder.function.name}.on_thread")
            one = ir.Function(builder.module, kind, name)
            one.linkage = "internal"
            inside = ir.IRBuilder(one.append_basic_block())
            inside_place = inside.bitcast(one.args[0], shared.as_pointer())
            given = inside.load(inside_place)
            asked = ir.FunctionType(i32, [])
            call = [
                inside.sext(inside.call(_external(builder, asked, name), []), i64)
                for name in (_NUMBER, _COUNT)
            ]
            call += [inside.extract_value(given, 0), inside.extract_value(given, 1)]
            status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, signature, call)
            with inside.if_then(status.is_error):
                inside.store(i32(1), inside.gep(inside_place, [i32(0), i32(2)]))
            inside.ret_void()
            kind = ir.FunctionType(ir.VoidType(), [kind.as_pointer(), byte, i32, i32])
            start = _external(builder, kind, _START)
            call = [one, builder.bitcast(place, byte), builder.trunc(count, i32), i32(0)]
            builder.call(start, call)
            failed = builder.load(builder.gep(place, [i32(0), i32(2)]))
            with builder.if_then(builder.icmp_signed("!=", failed, i32(0))):
                said = (f"{work.__name__} failed on a thread",)
                context.call_conv.return_user_exc(builder, RuntimeError, said)
            return context.get_dummy_value()

        return types.void(threads, arguments), codegen

    return start


def _external(builder: ir.IRBuilder, kind: ir.FunctionType, name: str) -> ir.Function:
    return cgutils.get_or_insert_function(builder.module, kind, name)


_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("cpu*.py")))
).hexdigest()


def jit(function: Callable[..., Any]) -> Any:
    """`numba.njit` with the disk cache, or without it where no folder can be written. What is
    cached holds for all of the CPU kernels' sources, as they call one another: numba's own stamp is
    of the function's file alone."""
    try:
        compiled = numba.njit(cache=True, fastmath=_FLAGS, nogil=True)(function)
        compiled._cache._cache_file._source_stamp = _SOURCES
    except (RuntimeError, AttributeError):
        return numba.njit(fastmath=_FLAGS, nogil=True)(function)
    return compiled


@intrinsic
def _float_of_bits(typing_context, bits):  # type: ignore[no-untyped-def]
    """Reinterpret an int32 as a float32."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


@jit
def exp2(x):  # type: ignore[no-untyped-def]
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
