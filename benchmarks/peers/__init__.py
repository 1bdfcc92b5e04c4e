"""Compare the served pipeline on Triton and on other model servers: `python -m benchmarks.peers`."""
