"""Policies that reason in words and images (VLCoT, RealSR-R1, arXiv 2506.16796)."""
