"""Weights on disk: which files, in which layout, and the one strict comparison of names and shapes."""
