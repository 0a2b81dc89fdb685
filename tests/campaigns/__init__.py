"""Campaigns: many seeded tries of one kind, each with a rule for what counts as a violation.

    python -m tests.campaigns.NAME --count N --seed S [--first K]

prints counts and every violation with what repeats it; exit status 1 if there is one. They take
minutes, so the suite runs a handful of seeds of each, and plants violations to see that they are
found."""
