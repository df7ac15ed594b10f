"""Distillation runs from selection to promotion, and the worker that starts them."""
