"""Text from a decoder: with and without a cache, greedy, sampled or by beams, and what a token costs."""
