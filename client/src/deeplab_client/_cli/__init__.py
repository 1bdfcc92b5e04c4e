"""The command line; only `app` imports the libraries of the extra `cli`."""
