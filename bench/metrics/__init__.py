"""Metrics as pure functions of features, images or embeddings, one file each."""
