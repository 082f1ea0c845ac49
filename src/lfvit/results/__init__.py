"""Showing: predictions, figures, tables and the reproduction."""
