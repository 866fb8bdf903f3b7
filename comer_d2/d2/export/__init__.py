"""Trained models in other forms, each compared with the one that it came from."""
