"""LGA, local-global attention (arXiv 2411.09604)."""
