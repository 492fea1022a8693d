"""A run from its settings: composed, resolved, built, its stages one after the other, tried dry, launched."""
