"""What the tests of photographs share: EXIF tags, a profile, and how an orientation turns a picture."""

import numpy as np
from PIL import Image, ImageCms

ORIENTATION, MAKE, EXPOSURE, EXIF_IFD = 0x0112, 0x010F, 0x829A, 0x8769

X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def turned(upright, orientation):
    """The pixels that a camera stores for an upright picture with this EXIF orientation."""
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
             5: lambda a: a.transpose(1, 0, 2), 6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
             8: lambda a: np.rot90(a, -1)}  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
