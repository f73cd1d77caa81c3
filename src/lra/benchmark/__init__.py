"""Time and memory of cores, beside public implementations of the same methods."""
