"""Models and their parts as Detectron2 builds them: backbones, meta-architectures, norms."""
