"""The models: one file each, a plain nn.Module with its loss and score."""
