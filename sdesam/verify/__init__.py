"""Is a theory right: exact expectations and weak errors, hypotheses, identification, comparisons
with error bars, statistics.
"""
