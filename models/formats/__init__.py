"""The formats of official checkpoints, read as data; nothing of them is executed. Their door is `models.checkpoints`."""
