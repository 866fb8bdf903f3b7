"""Datasets: the quickstart's digits, and COCO-format data of the user's own."""
