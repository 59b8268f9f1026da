"""SCSA, spatial and channel synergistic attention (arXiv 2407.05128), with its parts SMSA and PCSA."""
