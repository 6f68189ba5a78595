"""Side by side with hand-written native loops and with Keras; see README.md."""
