"""What is made of attributions: comparisons, curves, coresets, stability, the audit."""
