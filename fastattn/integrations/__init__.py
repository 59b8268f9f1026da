"""Other people's models and frameworks: none of them is imported before it is needed."""
