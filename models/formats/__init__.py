"""The formats of official checkpoints, read as data; nothing of a file is executed. Their door is `models.checkpoints`."""
