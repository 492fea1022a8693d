"""Preference studies: people choose between methods' images in a browser, without knowing which is whose."""
