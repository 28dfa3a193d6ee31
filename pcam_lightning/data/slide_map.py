"""The map of patches to slides: reading one, and making one from PCam's own files."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pcam_lightning.data.chunks import PER_PROCESS
from pcam_lightning.data.csv_tables import read_csv, read_labels
from pcam_lightning.data.h5_files import open_images, read_images
from pcam_lightning.data.image_io import hash_patches
from pcam_lightning.data.pcam_h5 import has_part, meta_of, read_meta, read_part
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.parallel import process_map

SLIDES_FILES = ("patch_id_wsi_full.csv", "patch_id_wsi.csv")  # the community's, and what `slides` writes
UNKNOWN_SLIDE = "unknown"  # of patches that a map of slides does not name, taken for one slide
_CHUNK = 512  # patches that one task reads and hashes: 14 MB


def find_slides(root: Path) -> Path | None:
    """Return the map of ids to slides that lies in a data folder; None where there is none."""
    return next((root / name for name in SLIDES_FILES if (root / name).is_file()), None)


def read_slides(path: Path) -> "pd.Series[str]":
    """Read a CSV with id,wsi; return the slide by id, missing where the CSV names none.

    Raises:
        UserError: it is missing or malformed; the message names the row.
    """
    frame = read_csv(path, ("id", "wsi"), "the slides command makes one from PCam's own files")
    return frame.set_index("id")["wsi"].replace("", pd.NA)


def slides(pcam: Path, root: Path = Path("data"), overwrite: bool = False) -> None:
    """Find the slide of each Kaggle patch in PCam's own files; write ROOT/patch_id_wsi.csv.

    Kaggle's id is the SHA-1 of the patch's pixels, so that the same pixels in PCam's training part tell its slide. Only
    lossless copies can match.

    Args:
        pcam: folder with camelyonpatch_level_2_split_train_x.h5, _y.h5 and _meta.csv, from Zenodo record 2546921; those
            of valid and test, where they are there too, are searched for slides and patches that must not turn up.
        root: data folder with train_labels.csv in Kaggle's layout.
        overwrite: replace a map that is there and differs.
    """
    read_meta(pcam, "train")
    ids = set(read_labels(root / "train_labels.csv")["id"])
    has = [part for part in ("valid", "test") if has_part(pcam, part)]
    # What is wrong with a file shows now, not after minutes of hashing.
    tables = {part: read_part(pcam, part) for part in ("train", *has)}
    for table in tables.values():
        table["slide"] = table.get("slide", "unknown slides")
    found: dict[str, set[str]] = {}  # the slides of each id
    for row in _hashed(pcam, tables["train"], root).itertuples():
        if row.sha1 in ids:
            found.setdefault(str(row.sha1), set()).add(str(row.slide))
    if not found:
        raise UserError(
            f"{pcam}: none of the {len(ids):,} ids in {root / 'train_labels.csv'} is the SHA-1 of a patch there. Only "
            "Kaggle's own ids, or lossless copies named by their SHA-1, can match."
        )
    several = sum(len(names) > 1 for names in found.values())
    if several:
        rank_zero_warn(
            f"{several:,} ids have pixels that stand in several slides (blank ones?); the first by name is taken."
        )
    table = pd.DataFrame([(patch_id, min(found[patch_id])) for patch_id in sorted(found)], columns=["id", "wsi"])
    for part in ("valid", "test"):
        _report_overlap(pcam, part, tables.get(part), ids, set(table["wsi"]), root)
    path, content = root / SLIDES_FILES[-1], table.to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_text(encoding="utf-8") != content and not overwrite:
        raise UserError(f"{path}: there already, and differs; `overwrite` true replaces it.")
    atomic_write(path, content)
    rest = len(ids) - len(table)
    more = " `data.unknown_slides` as_one_slide" if rest else ""
    rank_zero_info(
        f"{path}: {len(table):,} of {len(ids):,} ids ({len(table) / len(ids):.1%}), {table['wsi'].nunique():,} slides. "
        f"fit `data.slides` {path}{more} holds out whole ones"
        + (f"; the other {rest:,} patches count as one slide, though they may be of any." if rest else ".")
    )


def _report_overlap(
    pcam: Path, part: str, rows: pd.DataFrame | None, ids: set[str], slides: set[str], scratch: Path
) -> None:
    """Report which slides and patches of Kaggle's training part turn up in another part of PCam's."""
    if meta_of(pcam, part).is_file() and (both := set(read_meta(pcam, part)) & slides):
        rank_zero_warn(
            f"{len(both):,} slides of Kaggle's training patches are slides of PCam's {part} part too, "
            f"{min(both)} for one: that part is not independent of them."
        )
    if rows is None:
        rank_zero_info(f"{part}: not in {pcam}, so that none of its patches was looked for.")
        return
    found = _hashed(pcam, rows, scratch)
    found = found[found["sha1"].isin(ids)]
    if len(found):
        rank_zero_warn(
            f"{len(found):,} of Kaggle's training patches stand in PCam's {part} part too, of "
            f"{', '.join(sorted(set(found['slide']))[:3])}: that part is not independent of them."
        )
    else:
        rank_zero_info(f"{part}: none of Kaggle's training patches, as it should be.")


def _hashed(pcam: Path, rows: pd.DataFrame, scratch: Path) -> pd.DataFrame:
    """Return `sha1` of each patch of a part and its `slide`."""
    part = rows["id"].iloc[0].partition("-")[0]
    with ExitStack() as stack:
        file = stack.enter_context(open_images(pcam / rows["path"].iloc[0], len(rows), scratch))
        starts = range(0, len(rows), _CHUNK)
        map_on_cores = stack.enter_context(process_map(len(rows) // PER_PROCESS))
        done = map_on_cores(partial(_hash_chunk, str(file), len(rows)), starts)
        bar = tqdm(done, desc=f"hashing {part}", total=len(starts), unit=f" x {_CHUNK} patches")
        try:
            return pd.DataFrame({"sha1": [one for chunk in bar for one in chunk], "slide": rows["slide"]})
        except OSError as error:
            raise UserError(f"{pcam / rows['path'].iloc[0]}: damaged ({error}); download it again.") from None


def _hash_chunk(file: str, count: int, start: int) -> list[str]:
    return hash_patches(read_images(file, start, min(start + _CHUNK, count)))
