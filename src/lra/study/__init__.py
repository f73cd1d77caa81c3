"""A study: runs that belong together, planned by an experiment, run until done, carried about."""
