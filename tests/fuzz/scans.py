"""Rasters, scans and stores of arrays: TIFF, DICOM, NIfTI, NetCDF and Zarr."""

import contextlib
import importlib.util
import io
from pathlib import Path

import numpy as np
from scipy.io import netcdf_file

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import read
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.views.image import CenterCropView
from simmim_jax.errors import UserError
from tests.fuzz.images import read_examples
from tests.fuzz.target import Target

with contextlib.suppress(ImportError):
    import h5py  # noqa: F401  (it starts a program to find out about the machine)

_GDAL = Path(__file__).parents[1] / "data" / "codecs" / "gdal"


def _view(channels: int) -> CenterCropView:
    return CenterCropView(
        size=(8, 8),
        decoding=Decoding(channels),
        interpolation="bilinear",
        crop_fraction=1.0,
        dtype="float32",
    )


_VIEW = _view(1)
# Of the files that pydicom comes with: every encoding, in small files.
_SCANS = (
    *("CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "JPGExtended.dcm"),
    *("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_small_odd.dcm"),
    *("image_dfl.dcm", "rtdose_rle_1frame.dcm", "liver_1frame.dcm"),
)


def _volume() -> np.ndarray:
    return np.arange(18 * 7 * 9, dtype=np.int16).reshape(18, 7, 9)


# ---- TIFF ----------------------------------------------------------------------------


def _make_tiff(folder: Path) -> None:
    import tifffile

    files = {path.stem: path.read_bytes() for path in _GDAL.glob("*.tif")}
    del files["uint32"]  # float32 does not hold its values
    for name, options in (
        ("jpeg", {"compression": "jpeg"}),
        ("jpeg 2000", {"compression": "jpeg2000"}),
        ("ome", {"ome": True, "metadata": {"axes": "CYX"}}),
        ("imagej", {"imagej": True, "metadata": {"axes": "CYX"}}),
        ("pages", {"compression": "lzma"}),
    ):
        pages = np.arange(2 * 16 * 16, dtype=np.uint8).reshape(2, 16, 16)
        file = io.BytesIO()
        tifffile.imwrite(file, pages, photometric="minisblack", **options)
        files[name] = file.getvalue()
    for name, data in files.items():
        with contextlib.suppress(UserError):  # an encoding that is refused
            channels = read(data, Decoding()).pixels.shape[2]
            seed = folder / f"{channels} {name}"
            seed.mkdir(parents=True)
            (seed / "image.tif").write_bytes(data)


def _read_tiff(seed: Path) -> None:
    source = FolderSource(str(seed), Paths([b"image.tif"]), None, ())
    view = _view(int(seed.name.split()[0]))
    read_examples(source, view)
    read_examples(open_source(f"{seed / 'image.tif'}:@2", "train"), view)


# ---- DICOM ---------------------------------------------------------------------------


def _make_dicom(folder: Path) -> None:
    from pydicom.data import get_testdata_file

    for name in _SCANS:
        (folder / name).mkdir(parents=True)
        data = Path(str(get_testdata_file(name))).read_bytes()
        (folder / name / "image.dcm").write_bytes(data)


def _read_dicom(seed: Path) -> None:
    source = FolderSource(str(seed), Paths([b"image.dcm"]), None, ())
    read_examples(source, _VIEW)


# ---- NIfTI ---------------------------------------------------------------------------


def _make_nifti(folder: Path) -> None:
    import nibabel

    for name, kind in (("1", nibabel.Nifti1Image), ("2", nibabel.Nifti2Image)):
        for ending in (".nii", ".nii.gz"):
            image = kind(_volume(), np.diag([-1, 2, 3, 1]))
            image.header.set_slope_inter(0.5, 3)
            (folder / (name + ending)).mkdir(parents=True)
            nibabel.save(image, folder / (name + ending) / f"set{ending}")


def _read_set(seed: Path) -> None:
    (place,) = seed.glob("set*")
    selection = ":sagittal" if ".nii" in place.name else ""
    for split in ("train", "validation"):
        source = open_source(f"{place}{selection}", split)
        read_examples(source, _VIEW)


# ---- Arrays --------------------------------------------------------------------------


def _make_netcdf(folder: Path) -> None:
    for name in ("plain", "packed"):
        (folder / name).mkdir(parents=True)
        with netcdf_file(folder / name / "set.nc", "w") as file:
            for dim, size in zip("tyx", _volume().shape, strict=True):
                file.createDimension(dim, size)
            variable = file.createVariable("u", "h" if name == "packed" else "f", "tyx")
            variable[:] = _volume()
            variable.scale_factor, variable.missing_value = 0.5, 7.0


def _make_zarr(folder: Path) -> None:
    import zarr

    for version in (2, 3):
        group = zarr.create_group(
            str(folder / str(version) / "set.zarr"), zarr_format=version
        )
        group.create_array("images", data=_volume(), chunks=(2, 7, 9))
        group.create_array("labels", data=np.arange(18) % 3)


# Not HDF5: one damaged file in a thousand crashes its library (HDF5 2.0), in C.
_ALL = {
    "tifffile": Target("tiff", _make_tiff, _read_tiff),
    "pylibjpeg": Target("dicom", _make_dicom, _read_dicom),
    "nibabel": Target("nifti", _make_nifti, _read_set),
    "scipy": Target("netcdf", _make_netcdf, _read_set),
    "zarr": Target("zarr", _make_zarr, _read_set),
}
TARGETS = tuple(
    target for package, target in _ALL.items() if importlib.util.find_spec(package)
)
