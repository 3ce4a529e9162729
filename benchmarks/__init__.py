"""Measure the figures of docs/performance.md.

Each benchmark compares within one run, because machines differ, and are noisy.
"""
