"""A sample agent's history, and the demonstration that runs the whole loop on it."""
