"""Experiments that compare ways of answering, and measure recall."""
