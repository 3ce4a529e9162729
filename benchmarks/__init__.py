"""Measurements for docs/performance.md. Each compares within one run: machines differ, and are noisy."""
