"""The map as one HTML file that works offline."""
