"""The augmentations; klassify.augmentation.sets combines them into named sets."""
