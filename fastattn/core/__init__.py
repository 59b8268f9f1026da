"""What the attentions share: backends, registration and dispatch, checks, the extension, FLOPs."""
