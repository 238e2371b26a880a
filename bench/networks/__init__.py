"""The feature networks that look at images: each with its own way to prepare them, read as data."""
