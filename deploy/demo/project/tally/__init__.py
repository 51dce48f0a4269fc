"""Counts words over any number of texts, and keeps the counts in Redis."""
