"""Decode attention of others over the same keys and values, each as its authors tune it.

- `sdpa`: torch's scaled_dot_product_attention on contiguous KV, the quickest of its back ends. It
  reads no pages: what it reaches is what reading the KV takes without them.
- `flash_attention_3`: `flash_attn_interface`, vLLM's build of it, or the library that the variable
  KVARENA_FA3 names; grouped queries packed, its own split heuristic.
- `flashinfer`: BatchDecodeWithPagedKVCacheWrapper on tensor cores, planned once a set.

Whoever is not installed raises `AbsentError`. None of them is part of this project.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.decode_cases import Inputs

FA3_VARIABLE = "KVARENA_FA3"
_WORKSPACE_BYTES = 256 * 2**20


class AbsentError(RuntimeError):
    """A peer is not installed here, or does not take the case."""


class Peer(NamedTuple):
    """calls: one a set of inputs, each returning (batch, q_heads, head_dim) values. variant: what
    was chosen for it."""

    variant: str
    calls: Sequence[Callable[[], Tensor]]


def sdpa(inputs: Inputs) -> list[Peer]:
    """A peer a back end that takes this case; the caller keeps the quickest."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if inputs.case.page_size:
        raise AbsentError("reads no pages")
    tried: list[Peer] = []
    quick = ("FLASH_ATTENTION", "CUDNN_ATTENTION")
    for name in (*quick, "EFFICIENT_ATTENTION", "MATH") if inputs.store.keys.is_cuda else ("MATH",):
        if tried and name not in quick:
            break  # these expand grouped keys first
        backend = getattr(SDPBackend, name)
        calls = [
            _sdpa_call(inputs, index, lambda backend=backend: sdpa_kernel(backend))
            for index in range(len(inputs.queries))
        ]
        try:
            calls[0]()
        except RuntimeError:
            continue
        tried.append(Peer(name.lower(), calls))
    if not tried:
        raise AbsentError("no back end of torch's takes this case")
    return tried


def _sdpa_call(inputs: Inputs, index: int, context: Callable[[], Any]) -> Callable[[], Tensor]:
    case = inputs.case
    first = int(inputs.starts[index][0])
    view = (case.batch, case.context, *inputs.store.keys.shape[1:])
    keys, values = (
        cache[first : first + case.tokens].view(view).transpose(1, 2)
        for cache in (inputs.store.keys, inputs.store.values)
    )
    query = inputs.queries[index][:, :, None]

    def call() -> Tensor:
        with context():
            return scaled_dot_product_attention(
                query, keys, values, scale=inputs.scale, enable_gqa=True
            )

    return call


def flash_attention_3(inputs: Inputs) -> list[Peer]:
    """FlashAttention-3 over pages; its scheduler chooses the splits."""
    if not inputs.store.keys.is_cuda:
        raise AbsentError("needs a GPU")
    if not inputs.case.page_size:
        raise AbsentError("is compared on pages")
    name, forward = _flash_attention_3()
    keys, values = inputs.pages()
    calls = [
        lambda q=query, t=table: forward(inputs, q, keys, values, t)  # type: ignore[misc]
        for query, table in zip(inputs.queries, inputs.tables, strict=True)
    ]
    return [Peer(name, calls)]


def _flash_attention_3() -> tuple[str, Callable[..., Tensor]]:
    """The first build that is there."""
    if path := os.environ.get(FA3_VARIABLE):
        torch.ops.load_library(path)
        return "library", _library_forward
    try:
        interface = importlib.import_module("flash_attn_interface")
    except ImportError:
        interface = None
    if interface is not None:
        return "flash_attn_interface", lambda i, q, k, v, t: interface.flash_attn_with_kvcache(
            q[:, None], k, v, cache_seqlens=i.seq_lens, page_table=t,
            softmax_scale=i.scale, causal=True,
        )  # fmt: skip
    try:
        vllm = importlib.import_module("vllm.vllm_flash_attn")
    except ImportError as error:
        raise AbsentError(
            f"neither flash_attn_interface nor vllm can be imported, and {FA3_VARIABLE} names no "
            "library"
        ) from error
    return "vllm", lambda i, q, k, v, t: vllm.flash_attn_varlen_func(
        q, k, v, max_seqlen_q=1, cu_seqlens_q=i.query_start_loc, max_seqlen_k=i.case.context,
        seqused_k=i.seq_lens, block_table=t, softmax_scale=i.scale, causal=True, fa_version=3,
    )  # fmt: skip


def _library_forward(
    inputs: Inputs, query: Tensor, keys: Tensor, values: Tensor, table: Tensor
) -> Tensor:
    """Call the library's `fwd` by the names in its own schema, whatever their order."""
    forward = torch.ops._vllm_fa3_C.fwd.default
    given = {
        "q": query, "k": keys, "v": values, "cu_seqlens_q": inputs.query_start_loc,
        "seqused_k": inputs.seq_lens, "max_seqlen_q": 1, "max_seqlen_k": inputs.case.context,
        "page_table": table, "softmax_scale": inputs.scale, "is_causal": True,
        "window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "num_splits": 0,
    }  # fmt: skip
    result = forward(**arguments_for(forward._schema.arguments, given))
    return result[0] if isinstance(result, list | tuple) else result


def arguments_for(parameters: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` for a schema's parameters: what it does not name keeps its default, else a neutral
    value of its type (None, False, 0)."""
    chosen: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name in given:
            chosen[parameter.name] = given[parameter.name]
        elif not parameter.has_default_value():
            kind = str(parameter.type)
            neutral = {"bool": False, "int": 0, "float": 0.0}
            chosen[parameter.name] = neutral.get(kind)
    return chosen


def flashinfer(inputs: Inputs) -> list[Peer]:
    """FlashInfer's batch decode; on tensor cores, as its documentation advises for groups."""
    if not inputs.store.keys.is_cuda:
        raise AbsentError("needs a GPU")
    if not inputs.case.page_size:
        raise AbsentError("is compared on pages")
    try:
        library = importlib.import_module("flashinfer")
    except ImportError as error:
        raise AbsentError(f"flashinfer cannot be imported: {error}") from error
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.store.keys.device)
    pages = inputs.pages()
    calls = []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        wrapper = _planned(library, workspace, inputs, table)
        calls.append(lambda w=wrapper, q=query: w.run(q, pages))
    return [Peer("tensor cores", calls)]


def _planned(library: Any, workspace: Tensor, inputs: Inputs, table: Tensor) -> Any:
    """A wrapper that knows one set's pages. Its scratch memory is shared: calls follow each
    other on one stream."""
    shape, case = inputs.store.shape, inputs.case
    batch, pages_each = table.shape
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
        workspace, kv_layout="NHD", use_tensor_cores=True
    )
    starts = torch.arange(0, (batch + 1) * pages_each, pages_each, dtype=torch.int32)
    last = torch.full((batch,), case.page_size, dtype=torch.int32)
    wrapper.plan(
        starts.to(table.device), table.flatten(), last.to(table.device),
        shape.q_heads, shape.kv_heads, shape.head_dim, case.page_size,
        q_data_type=shape.dtype, kv_data_type=shape.dtype, sm_scale=inputs.scale,
    )  # fmt: skip
    return wrapper


PEERS: dict[str, Callable[[Inputs], list[Peer]]] = {
    "sdpa": sdpa,
    "flash_attention_3": flash_attention_3,
    "flashinfer": flashinfer,
}
