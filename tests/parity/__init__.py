"""Recorded outputs of mergekit 0.1.5 on tiny models, and what compares mergegraph with them."""
