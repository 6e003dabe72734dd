"""The PagedAttention paper: its systems, its quantities, and how ours lie beside them."""
