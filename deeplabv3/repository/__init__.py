"""What build, embedded server, benchmarks and tests read in a model repository. Importing it imports no torch."""
