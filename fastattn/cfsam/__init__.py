"""CFSAM, cross-layer feature self-attention of pyramids (arXiv 2510.14726)."""
