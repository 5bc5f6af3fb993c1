"""What becomes of an update: bounds, averaging, the step of the server."""
