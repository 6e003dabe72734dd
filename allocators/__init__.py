"""Policy: which pages belong to which sequence. Standard library only: no tensors, no clocks."""
