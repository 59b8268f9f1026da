"""SCSA, SMSA and PCSA."""
