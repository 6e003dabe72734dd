"""Policy: which groups run in a step, and the memory they are given. Knows no tensors."""
