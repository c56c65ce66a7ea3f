"""fastrnn beside torch.nn: ``python -m benchmarks.compare`` and pytest-benchmark cases."""
