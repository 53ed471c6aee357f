"""Benchmarks: what `kvcomm bench` runs."""
