"""The command line; only `app` imports what the extra `cli` brings."""
