"""The feature pyramid of the plain ViT baseline."""

from detectron2.modeling import SimpleFeaturePyramid as Detectron2Pyramid


class SimpleFeaturePyramid(Detectron2Pyramid):
    """Detectron2's SimpleFeaturePyramid, telling Detectron2 what images must be padded to.

    Detectron2's own misspells the key of ``padding_constraints`` and leaves ``size_divisibility``
    at 0, so that without ``square_pad`` nothing is padded: a batch whose sides do not divide by 32
    gives levels that are not halves of each other. Arguments and parameters are the same.

    Source: arXiv 2203.16527, Sec. 3.
    """

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this: the stride of the coarsest level."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What Detectron2's models pad a batch of images to."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}
