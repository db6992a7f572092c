"""Stores and folders of images, and the patches that are drawn from them."""
