"""Agent memory that retrieves and learns."""
