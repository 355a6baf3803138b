"""Bundles: built, resumed, checked and opened."""
