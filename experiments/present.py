from __future__ import annotations
def present(rows, jobs, figures, folder, console):
    cols=["strategy","page_size","workload","executor","utilisation","memory_bound","batched_requests","output_tokens_per_s","normalised_latency_ms","ttft_ms","preemptions","num_refused"]
    console.print(rows[[c for c in cols if c in rows]].to_string())
    return []
