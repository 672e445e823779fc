"""Many texts per second: which of them share a batch, what a batch costs, on which cores, in what memory."""
