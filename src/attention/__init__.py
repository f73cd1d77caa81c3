"""Attention variants behind one contract, in pure torch.

A variant is a subclass of `AttentionCore` (`base.py` states what it owes) in a module of its own,
and a YAML in `conf/attention` that names it. Nothing else has to be edited: the harness, the
tests and the tables find the YAML by its file name.
"""
