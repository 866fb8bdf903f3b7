"""Evaluators for segmentation that need nothing beside what Detectron2 needs."""
