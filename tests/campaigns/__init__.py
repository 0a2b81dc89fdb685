"""Seeded campaigns of random calls, too long for the suite: `make campaigns`."""
