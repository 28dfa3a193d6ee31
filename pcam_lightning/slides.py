"""slides: Kaggle's ids and PCam's own files -> patch_id_wsi.csv, which patch is of which slide."""

import hashlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.official import has_part, meta_of, open_images, read_images, read_meta, read_part
from pcam_lightning.pixels import BYTES
from pcam_lightning.table import SLIDES_FILES, read_labels
from pcam_lightning.workers import workers

_CHUNK = 512  # patches that one task reads and hashes: 14 MB


def slides(pcam: Path, root: Path = Path("data"), overwrite: bool = False) -> None:
    """Find out which slide each of Kaggle's patches is of, from PCam's own files; write ROOT/patch_id_wsi.csv.

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
    told: dict[str, set[str]] = {}
    for row in _hashed(pcam, tables["train"], root).itertuples():
        if row.sha1 in ids:
            told.setdefault(str(row.sha1), set()).add(str(row.slide))
    if not told:
        raise UserError(
            f"{pcam}: none of the {len(ids):,} ids in {root / 'train_labels.csv'} is the SHA-1 of a patch there. Only "
            "Kaggle's own ids, or lossless copies named by their SHA-1, can match."
        )
    several = sum(len(names) > 1 for names in told.values())
    if several:
        warn(f"{several:,} ids have pixels that stand in several slides (blank ones?); the first by name is taken.")
    table = pd.DataFrame([(patch_id, min(told[patch_id])) for patch_id in sorted(told)], columns=["id", "wsi"])
    for part in ("valid", "test"):
        if meta_of(pcam, part).is_file() and (both := set(read_meta(pcam, part)) & set(table["wsi"])):
            warn(
                f"{len(both):,} slides of Kaggle's training patches are slides of PCam's {part} part too, "
                f"{min(both)} for one: it does not judge what they have trained."
            )
        if part not in has:
            say(f"{part}: not in {pcam}, so that none of its patches was looked for.")
        else:
            found = _hashed(pcam, tables[part], root)
            found = found[found["sha1"].isin(ids)]
            if len(found):
                warn(
                    f"{len(found):,} of Kaggle's training patches stand in PCam's {part} part too, of "
                    f"{', '.join(sorted(set(found['slide']))[:3])}: it does not judge what they have trained."
                )
            else:
                say(f"{part}: none of Kaggle's training patches, as it should be.")
    path, content = root / SLIDES_FILES[-1], table.to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_text(encoding="utf-8") != content and not overwrite:
        raise UserError(f"{path}: there already, and differs; --overwrite true replaces it.")
    write_whole(path, content)
    rest = len(ids) - len(table)
    more = " --data.unknown_slides group" if rest else ""
    say(
        f"{path}: {len(table):,} of {len(ids):,} ids ({len(table) / len(ids):.1%}), {table['wsi'].nunique():,} slides. "
        f"fit --data.slides {path}{more} holds out whole ones"
        + (f"; the other {rest:,} patches count as one slide, though they may be of any." if rest else ".")
    )


def _hashed(pcam: Path, rows: pd.DataFrame, scratch: Path) -> pd.DataFrame:
    """Return `sha1` of each patch of a part and its `slide`."""
    part = rows["id"].iloc[0].partition("-")[0]
    with ExitStack() as stack:
        file = stack.enter_context(open_images(pcam / rows["path"].iloc[0], len(rows), scratch))
        starts = range(0, len(rows), _CHUNK)
        map_on_cores = stack.enter_context(workers(len(starts)))
        done = map_on_cores(partial(_hash_chunk, str(file), len(rows)), starts)
        bar = tqdm(done, desc=f"hashing {part}", total=len(starts), unit=f" x {_CHUNK} patches")
        try:
            return pd.DataFrame({"sha1": [one for chunk in bar for one in chunk], "slide": rows["slide"]})
        except OSError as error:
            raise UserError(f"{pcam / rows['path'].iloc[0]}: damaged ({error}); download it again.") from None


def _hash_chunk(file: str, count: int, start: int) -> list[str]:
    pixels = memoryview(read_images(file, start, min(start + _CHUNK, count)))
    return [hashlib.sha1(pixels[at : at + BYTES]).hexdigest() for at in range(0, len(pixels), BYTES)]
