"""Numbers of 8 and 4 bits for numbers of 32: which grids, which scales, which layers, and at what cost."""
