"""Random kills of whole jobs, counted: `python -m tests.torture --seed S --kills N`."""
