"""Benchmarks of selfvit and comparisons with other libraries."""
