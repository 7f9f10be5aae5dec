"""All targets."""

from tests.fuzz import data_sets, foreign, images, run_files, scans, sounds, stores
from tests.fuzz.target import Target

TARGETS: tuple[Target, ...] = (
    images.IMAGE,
    *data_sets.TARGETS,
    *run_files.TARGETS,
    *foreign.TARGETS,
    *scans.TARGETS,
    *sounds.TARGETS,
    *stores.TARGETS,
)
