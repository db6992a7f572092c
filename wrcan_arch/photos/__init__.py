"""Photographs of one's own, restored."""
