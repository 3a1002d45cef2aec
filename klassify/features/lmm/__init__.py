"""Hidden states of a multi-modal language model."""
