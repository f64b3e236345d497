"""How fast things are, each against a plain baseline measured in the same run: `python -m benchmarks.NAME`."""
