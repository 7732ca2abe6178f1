"""What the method costs, as ratios measured in one run: `python -m resdit_ext benchmark`."""
