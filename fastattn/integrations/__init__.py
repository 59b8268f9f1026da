"""Other people's frameworks: what puts fastattn's modules into their models."""
