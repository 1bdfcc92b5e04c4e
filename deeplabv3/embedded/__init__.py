"""What serve.py knows: what must hold before a start, and which processes and files are whose."""
