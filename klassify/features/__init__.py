"""Features taken from media: face tracking (`face`) and the mouth's eight channels (`mouth`)."""
