"""How far a variant is from softmax attention: Figure 1 of the paper, for any variant.

A source gives (Q, K, V) of sequences; every head of every sequence is a trial. Exact attention is
computed once for all variants; the errors of a variant, at one number of features, length and
temperature, are a cell, a file of its own. Tables and pictures are drawn from cells.
"""
