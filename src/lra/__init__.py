"""The harness: task -> model -> trainer -> record -> tables.

It knows attention variants only through `attention.AttentionCore`.
"""
