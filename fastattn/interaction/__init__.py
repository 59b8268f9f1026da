"""ACP and CAT, interaction of tokens before self-attention (arXiv 2412.18778)."""
