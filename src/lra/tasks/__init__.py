"""The tasks: readers of prepared data, and the generators that regenerate it."""
