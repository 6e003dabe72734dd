"""How well a matrix product of few rows uses a GPU."""

from __future__ import annotations

TILE_HEIGHTS = (16, 32, 64, 128, 256)
TILE_WIDTH = 128


def equivalent_rows(num_rows: int) -> float:
    """Rows that would take as long, if every row ran at the efficiency of the largest tile.

    A product of `num_rows` rows and many columns is done in tiles, filled or not (NVIDIA, Matrix
    Multiplication Background User's Guide, DU-09799, section 3.1: tile quantisation). A tile of h
    rows and w columns does h * w products for h + w operands that it loads, so its speed goes
    with h * w / (h + w) (the same guide, section 2.3: larger tiles reuse more and are more
    efficient). The library takes the height that is quickest. The result steps up at each
    multiple of the largest tile and is never below `num_rows`.
    """
    if num_rows < 1:
        return 0.0
    best = min(-(-num_rows // height) * (height + TILE_WIDTH) for height in TILE_HEIGHTS)
    highest = TILE_HEIGHTS[-1]
    return best * highest / (highest + TILE_WIDTH)
