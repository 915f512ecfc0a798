"""Text to tokens to residual stream to logits, and back: the forward pass and all that it needs."""
