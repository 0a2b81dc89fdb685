"""What has no theory in it: checks and their sentences, arrays and devices, functions and what they
read, files.
"""
