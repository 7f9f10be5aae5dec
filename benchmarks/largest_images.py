"""Memory and seconds that the largest images take which a config's defaults decode.

    python -m benchmarks.largest_images

For each encoding it writes an image as large as `max_image_pixels` allows, flat and of
noise, and a process of its own reads and decodes it. Noise, which no photograph comes
close to, is smaller where its file would be too large. Needs 4 GB of memory and a
quarter of an hour.
"""

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

# Arguments of Pillow's encoders. EXIF orientation 6 is a quarter turn.
KINDS = {
    "JPEG": ("RGB", "JPEG", {"quality": 95}),
    "JPEG, progressive, turned": (
        *("RGB", "JPEG"),
        {"quality": 95, "subsampling": 0, "progressive": True, "exif": 6},
    ),
    "JPEG, CMYK, progressive": ("CMYK", "JPEG", {"quality": 95, "progressive": True}),
    "PNG": ("RGBA", "PNG", {"compress_level": 1}),
    "PNG, turned": ("RGB", "PNG", {"compress_level": 1, "exif": 6}),
    "PNG, 16-bit gray": ("I;16", "PNG", {"compress_level": 1}),
    "BMP": ("RGB", "BMP", {}),
    "GIF": ("P", "GIF", {}),
    "PPM": ("RGB", "PPM", {}),
    "PPM, text": ("RGB", "text", {}),
    "TIFF": ("RGBA", "TIFF", {}),
    "TIFF, LZW": ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF, LZMA": ("RGBA", "TIFF", {"compression": "lzma"}),
    "TIFF, Lab": ("LAB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "WebP": ("RGBA", "WEBP", {"quality": 80, "method": 0}),
    "WebP, lossless": ("RGBA", "WEBP", {"lossless": True, "method": 0, "quality": 0}),
    "AVIF": ("RGBA", "AVIF", {"speed": 10}),
    "JPEG 2000": ("RGBA", "JPEG2000", {}),
}
# Channels and type of modes that are not named by their channels.
_LAYOUTS = {"P": (1, np.uint8), "I;16": (1, np.uint16)}
# Values of noise; all 256 would be stored, rather than compressed.
_LEVELS = 64


def encode(kind: str, side: int, noise: bool) -> bytes:
    """Return an image of side x side pixels, of one colour or of noise."""
    mode, format, options = KINDS[kind]
    channels, dtype = _LAYOUTS.get(mode, (len(mode), np.uint8))
    shape = (side, side, channels)
    values = np.full(shape, 100, dtype)
    if noise:
        values += np.random.default_rng(0).integers(0, _LEVELS, shape, dtype)
    if format == "text":
        return b"P3 %d %d 255 " % (side, side) + b" ".join(
            b"%d" % value for value in values.ravel().tolist()
        )
    if turn := options.get("exif"):
        options = {**options, "exif": Image.Exif()}
        options["exif"][0x0112] = turn
    file = io.BytesIO()
    ImageFile.MAXBLOCK = 2**28  # else large progressive JPEGs cannot be written
    Image.frombytes(mode, (side, side), values.tobytes()).save(file, format, **options)
    return file.getvalue()


def largest(kind: str, noise: bool) -> bytes:
    """Return about the largest image that is decoded by default."""
    from simmim_jax.data.codecs.base import MAX_PIXELS
    from simmim_jax.data.codecs.limits import share_of

    probe = encode(kind, 1000, noise)
    with Image.open(io.BytesIO(probe)) as file:
        share = share_of(file)
    bytes_per_pixel = len(probe) / 1000**2
    pixels = MAX_PIXELS * min(share.pixels, 0.97 * share.num_bytes / bytes_per_pixel)
    return encode(kind, math.isqrt(int(pixels)), noise)


def measure(path: str) -> dict[str, float]:
    """Read and decode a file; return pixels, bytes, seconds, and the peak of memory."""
    from simmim_jax.data.codecs.base import Decoding
    from simmim_jax.data.codecs.image import decode_image
    from simmim_jax.data.sources.remote import read_file

    for plugin in ("PNG", "JPEG2000", "AVIF", "WEBP", "TIFF"):  # loaded before
        decode_image(encode_small(plugin), Decoding(3))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = _kilobytes("VmRSS"), time.perf_counter()
    data = read_file(path)
    image = decode_image(data, Decoding(3)).pixels
    return {
        "pixels": image.shape[0] * image.shape[1],
        "bytes": len(data),
        "seconds": time.perf_counter() - start,
        "peak": (_kilobytes("VmHWM") - before) * 1024,
    }


def encode_small(format: str) -> bytes:
    """Return a small image file."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, format)
    return file.getvalue()


def _kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in status.splitlines() if name in row)


def main() -> None:
    """Measure all kinds, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--file", default="", help="measure this file, print JSON")
    args = parser.parse_args()
    if args.file:
        print(json.dumps(measure(args.file)))
        return
    print("| encoding | image | megapixels | file [MB] | seconds | peak [MB] |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        if args.only not in kind:
            continue
        for noise in (False, True):
            with tempfile.NamedTemporaryFile() as file:
                file.write(largest(kind, noise))
                file.flush()
                command = [sys.executable, "-m", "benchmarks.largest_images"]
                command += ["--file", file.name]
                run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr)
            found = json.loads(run.stdout)
            print(
                f"| {kind} | {'noise' if noise else 'flat'} "
                f"| {found['pixels'] / 1e6:.1f} | {found['bytes'] / 1e6:.1f} "
                f"| {found['seconds']:.1f} | {found['peak'] / 1e6:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
