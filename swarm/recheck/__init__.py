"""Recomputation of a run by whoever holds its receipt: replay of all of it, audit of rows that its nodes open."""
