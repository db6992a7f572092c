"""The exact network over an image in strips, in memory that grows with the image by three of its maps."""
