"""Restoring photographs from files."""
