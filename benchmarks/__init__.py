"""Speed beside peers: the workloads W1 (a small ensemble), W2 (a finite sum) and W3 (a network),
each against floors and other libraries.

Run with `sdesam bench`. Contenders take turns, so that a busy moment of the machine
falls on all; times are medians, compile time is apart, and every contender's statistics are tested
against the others' (`tests/test_bench.py`): a benchmark of different SDEs says nothing.
"""
