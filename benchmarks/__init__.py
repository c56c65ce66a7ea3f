"""Benchmarks of fastrnn against torch.nn; start with ``python -m benchmarks.compare``."""
