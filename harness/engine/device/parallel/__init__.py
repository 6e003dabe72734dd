"""Tensor parallelism: a model whose weights and KV heads are split over processes.

Rank 0 decides and draws tokens; the others (`follower`) compute what it tells them (`followers`).
Each holds a slice of the weights (`sharding`) and the same pages of its own KV heads.
"""
