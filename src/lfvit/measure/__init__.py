"""Measuring: cost, thresholds, evaluation and speed."""
