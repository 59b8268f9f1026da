"""LGA's scales and the attention among channels."""
