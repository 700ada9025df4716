"""Compare predictions with the true classes."""
