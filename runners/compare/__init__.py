"""Comparing: the plan of what runs, its cells in processes of their own, and what they leave behind."""
