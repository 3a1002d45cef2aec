"""The augmentations themselves; klassify.augmentation.sets gathers the named sets."""
