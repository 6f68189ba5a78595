"""Readers of labelled images: COCO's annotations, YOLO's folders.

Both return (paths, {"boxes": [...], "classes": [...]}, names): for each image, those without
objects too, float32 (count, 4) in xyxy, pixels, and int32 (count,), places in the names of classes.
Rows that are wrong are an error that names all of them; bad_rows="skip" leaves them out, warning.
"""

import re
import warnings
from pathlib import Path

import numpy as np

from khub.choices import choose

from ..presets.images import SUFFIXES
from ..presets.tensors import parse_json

DTYPES = {"boxes": "float32", "classes": "int32", "crowd": "int32", "area": "float32"}
SHOWN = 10  # bad rows in a message
TURNED = {5, 6, 7, 8}  # EXIF orientations whose width is the height of what is shown


def read_coco(annotations_json, image_folder, bad_rows="error"):
    """Read COCO's instances_*.json: as above, with "crowd" and "area" beside the boxes.

    Raises ValueError for what is no such file, and for bad rows.
    """
    path, folder = (Path(p).expanduser() for p in (annotations_json, image_folder))
    content, problems = parse_json(path.read_bytes(), str(path)), []
    paths = {key: folder / name for key, name in _pairs(path, content, "images", "file_name")}
    problems += [f"image {k}: {p} does not exist" for k, p in paths.items() if not p.is_file()]
    problems += ["ids of images are not unique"] * (len(paths) < len(content["images"]))
    kinds = dict(sorted(_pairs(path, content, "categories", "name")))
    places, rows = {kind: i for i, kind in enumerate(kinds)}, {key: [] for key in paths}
    for number, (key, row) in enumerate(_pairs(path, content, "annotations")):
        try:
            for name, known in (("image_id", paths), ("category_id", kinds)):
                if row.get(name) not in known:
                    raise ValueError(f"there is no {name} {row.get(name)!r}")
            x, y, width, height = _checked(row.get("bbox"))
        except (ValueError, TypeError) as error:
            problems.append(f"annotation {number} (id {key}): {error}")
            continue
        found = [x, y, x + width, y + height], places[row["category_id"]], row.get("iscrowd", 0)
        rows[row["image_id"]].append((*found, row.get("area", width * height)))
    kept = [key for key in paths if paths[key].is_file()]
    labels = _labels(path, [rows[key] for key in kept], DTYPES, problems, bad_rows)
    return [str(paths[key]) for key in kept], labels, [*kinds.values()]


def read_yolo(source, split="train", bad_rows="error"):
    """Read a data.yaml, or a folder with images/SPLIT and labels/SPLIT (or SPLIT/images, ...).

    Beside an image lies, with "labels" for "images" in its path, a .txt file with a row "class
    x y width height" for each object, centre and sizes in parts of the image's.
    Raises ValueError where there are no images, and for bad rows.
    """
    source = Path(source).expanduser()
    root = source.parent if source.is_file() else source
    described = source if source.is_file() else source / "data.yaml"
    content = _yaml(described) if described.is_file() else {}
    usual = [root / "images" / split, root / split / "images", root / split, root]
    if given := content.get(split):
        usual = [root / content.get("path", "") / given, root / given]
    place = next((p for p in usual if p.exists()), usual[0])
    if place.suffix == ".txt":  # which lists the images
        images = [place.parent / line for line in place.read_text().split("\n") if line.strip()]
    else:
        images = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f"{place} has no images; expected files of {', '.join(sorted(SUFFIXES))}.")
    names, problems, rows = content.get("names"), [], []
    files = [_beside(path) for path in images]
    for path, file in zip(images, files):
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        size = _size(path) if lines else None
        rows.append([])
        for number, line in enumerate(lines, 1):
            try:
                rows[-1] += [_row(line, size, names)] if line.strip() else []
            except ValueError as error:
                problems.append(f"{file}, line {number}: {error}: {line!r:.80}")
    folders = {file.parent for file in files} - {path.parent for path in images}
    left = {file for folder in folders for file in folder.glob("*.txt")} - {*files}
    problems += [f"{file} has no image" for file in sorted(left)]
    labels = _labels(place, rows, ("boxes", "classes"), problems, bad_rows)
    most = max((kind for found in rows for _, kind in found), default=-1)
    return [*map(str, images)], labels, names or [*map(str, range(most + 1))]


def _labels(where, rows, names, problems, bad_rows):
    """Turn the rows of each image into an array for each name, once the problems are told."""
    if problems:
        more = [f"... {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        text = "\n  ".join([f"{where}: {len(problems)} bad rows:", *problems[:SHOWN], *more])
        if choose("bad_rows", bad_rows, ("error", "skip")) == "error":
            raise ValueError(text + '\nMend them, or leave them out with bad_rows="skip".')
        warnings.warn(text, stacklevel=3)
    labels = {
        name: [np.asarray([row[i] for row in image], DTYPES[name]) for image in rows]
        for i, name in enumerate(names)
    }
    return labels | {"boxes": [boxes.reshape(-1, 4) for boxes in labels["boxes"]]}


def _pairs(path, content, part, name=None):
    """Yield the id and the value of this name, or the whole, of each row of a part of COCO's."""
    rows = content.get(part)
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        needed = ("id", name) if name else ()
        if not isinstance(row, dict) or any(not isinstance(row.get(n), (int, str)) for n in needed):
            raise ValueError(f"{path}: row {number} of {part} must have {needed}, got {row!r:.80}.")
        yield row.get("id"), row[name] if name else row


def _checked(box):
    """Return x, y, width and height."""
    numbers = isinstance(box, (list, tuple)) and all(type(n) in (int, float) for n in box)
    if not numbers or len(box) != 4 or not np.isfinite(box).all():
        raise ValueError(f"the box must be 4 finite numbers, got {box!r:.80}")
    if min(box[2:]) <= 0:
        raise ValueError(f"width and height must be positive, got {box}")
    return box


def _row(line, size, names):
    """Return ([left, top, right, bottom], class) of a row of a label file."""
    kind, *box = map(float, line.split())
    if len(box) != 4:
        raise ValueError(f"expected class x y width height, got {len(box) + 1} numbers")
    (x, y, width, height), (wide, high) = _checked(box), size
    if kind < 0 or not kind.is_integer() or (names and kind >= len(names)):
        known = f"below {len(names)}, as many as there are names" if names else "from 0"
        raise ValueError(f"the class must be a whole number {known}")
    if min(box) < 0 or max(box) > 1:
        raise ValueError("x, y, width and height must lie in 0..1")
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return [left * wide, top * high, right * wide, bottom * high], int(kind)


def _beside(image):
    """The file of an image's labels."""
    parts = [*image.parts]
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _size(path):
    """Width and height of an image as it is shown, without decoding it."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size[::-1] if image.getexif().get(0x0112) in TURNED else image.size


def _yaml(path):
    """Read the part of YAML that such files need: scalars, and names as a list or by number."""
    content, names = {}, []
    for line in path.read_text().splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        key, _, value = (part.strip(" '\"") for part in line.partition(":"))
        if line[:1] in (" ", "-") and names is content.get("names"):
            names.append(value if value else key.lstrip("- '\""))
        elif key == "names":
            inner = re.split(r",\s*", value.strip("[]{} ")) if value else []
            content["names"] = names = [v.split(":")[-1].strip(" '\"") for v in inner]
        elif value:
            content[key] = value
    return content
