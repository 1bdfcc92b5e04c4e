"""The embedded server: checks before the start, the server process, and the processes and files that belong to it."""
