"""A leaner forward pass for decoders of Llama's build (Llama, Mistral, Qwen 2, Qwen 3, ...).

Merged QKV and gate-up projections, element-wise work fused where kernels for it are there, logits
for sampled rows only, and activations in buffers that are reused. A model gets it where its
modules have the right names and a probe shows the same queries, keys, values and logits as its
own forward pass; nothing else decides.
"""
