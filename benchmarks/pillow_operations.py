"""RandAugment operations by Pillow's functions, as timm 0.4.12 calls them."""

from collections.abc import Sequence

from PIL import Image, ImageEnhance, ImageOps


def pillow(
    name: str, image: Image.Image, argument: float, fill: Sequence[int]
) -> Image.Image:
    """Apply the operation `name` to an image of mode "L" or "RGB"."""
    width, height = image.size
    options: dict = {
        "resample": Image.Resampling.BICUBIC,
        "fillcolor": tuple(fill) if image.mode == "RGB" else fill[0],
    }

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, **options)

    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(argument, **options)
        case "Posterize":
            if argument < 1:  # newer versions of Pillow raise
                return image.point(lambda level: 0)
            return ImageOps.posterize(image, int(argument))
        case "Solarize":
            return ImageOps.solarize(image, int(argument))
        case "SolarizeAdd":
            table = [min(255, i + int(argument)) if i < 128 else i for i in range(256)]
            return image.point(table * len(image.getbands()))
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(argument)
        case "ShearX":
            return affine(1, argument, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, argument, 1, 0)
        case "TranslateX":
            return affine(1, 0, argument * width, 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, argument * height)
    raise ValueError(name)
