"""Other tools' annotations -> COCO's, and back: one file a format.

A reader gives a `Split` for each part of the data that it finds; a writer takes them. Polygons stay
polygons: nothing is drawn and traced again.
"""
