"""Benchmarks: files as distributed become items with a split and a label. One module a benchmark."""
