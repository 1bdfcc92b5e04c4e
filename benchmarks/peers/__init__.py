"""The served pipeline on Triton beside the same pipeline on other model servers; `python -m benchmarks.peers`."""
