"""Figures, on pages and as files."""
