"""The commands of `comer-d2` that stand on Detectron2."""
