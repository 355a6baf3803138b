"""What is derived from attributions: comparisons, curves, coresets, stability, the audit."""
