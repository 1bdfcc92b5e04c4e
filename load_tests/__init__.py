"""Load tests: Locust drives the project's own client; capacity.py tells what a run means for N replicas."""
