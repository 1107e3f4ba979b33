"""Bugs kept as patches: the soak has to find each of them. `python -m tests.bugs` applies and looks."""
