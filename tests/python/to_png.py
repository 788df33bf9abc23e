"""Saves an image as PNG, so that every reader sees the same pixels.

Arguments: image, PNG file to write.
"""

import sys

from PIL import Image

Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2], compress_level=1)
