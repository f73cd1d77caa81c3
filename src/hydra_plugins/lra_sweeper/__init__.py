"""Hydra finds the sweeper here: it looks for plugins in the namespace package `hydra_plugins`."""
