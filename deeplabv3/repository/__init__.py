"""Readers of the files in a model repository, for build, embedded server, benchmarks and tests. Without torch."""
