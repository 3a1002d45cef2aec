"""The augmentations themselves; klassify.augment gathers the named sets."""
