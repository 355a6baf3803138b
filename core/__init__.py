"""natscope's method: Jacobians, sketches, Gaussian-process mathematics, greedy selection, methods, metrics, bundles."""
