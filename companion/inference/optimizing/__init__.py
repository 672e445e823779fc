"""One command for a model folder: every method is tried, judged, measured; one is chosen and explained."""
