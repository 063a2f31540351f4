"""Measuring what was trained: held-out loss per noise quantile, and the report that shows it."""
