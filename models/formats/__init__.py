"""The formats of official checkpoints, read as data; nothing of them is executed. The door is `models.checkpoints`."""
