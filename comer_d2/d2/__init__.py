"""The one room of the package that binds Detectron2; everything outside it runs without."""

import logging

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"comer_d2.d2 needs Detectron2, which does not import here ({error}): "
        "run `make install`, or see docs/INSTALL.md"
    ) from error

# Detectron2's pooler calls what torch has renamed; nothing a user could act on.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
