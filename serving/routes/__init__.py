"""One module per wire dialect."""
