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
    if missing := {"images", "annotations", "categories"} - content.keys():
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; expected COCO's instances.")
    kinds = {row["id"]: row["name"] for row in content["categories"]}
    places = {kind: i for i, kind in enumerate(sorted(kinds))}
    rows, paths = {}, {}
    for row in content["images"]:
        paths[row["id"]], rows[row["id"]] = folder / row["file_name"], []
        if not paths[row["id"]].is_file():
            problems.append(f"image {row['id']}: {paths[row['id']]} does not exist")
    for number, row in enumerate(content["annotations"]):
        box = row.get("bbox")
        fault = (
            f"image_id {row.get('image_id')!r} is not in images"
            if row.get("image_id") not in rows
            else f"category_id {row.get('category_id')!r} is not in categories"
            if row.get("category_id") not in kinds
            else _fault(box)
        )
        if fault:
            problems.append(f"annotation {number} (id {row.get('id')}): {fault}")
            continue
        x, y, width, height = box
        found = [x, y, x + width, y + height], places[row["category_id"]], row.get("iscrowd", 0)
        rows[row["image_id"]].append((*found, row.get("area", width * height)))
    _report(path, problems, bad_rows)
    kept = [key for key in rows if paths[key].is_file()]
    labels = _labels([rows[key] for key in kept], DTYPES)
    return [str(paths[key]) for key in kept], labels, [kinds[kind] for kind in places]


def read_yolo(source, split="train", bad_rows="error"):
    """Read a data.yaml, or a folder with images/SPLIT and labels/SPLIT (or SPLIT/images, ...).

    Beside an image lies, with "labels" for "images" in its path, a .txt file with a row "class
    x y width height" for each object, centre and sizes in parts of the image's.
    Raises ValueError where there are no images, and for bad rows, FileNotFoundError.
    """
    source = Path(source).expanduser()
    root, described = (
        (source.parent, source) if source.is_file() else (source, source / "data.yaml")
    )
    content = _yaml(described) if described.is_file() else {}
    if given := content.get(split):
        place = root / str(content.get("path", "")) / given
        place = place if place.exists() else root / given
    else:
        usual = [root / "images" / split, root / split / "images", root / split, root]
        place = next(p for p in usual if p.is_dir() or p == root)
    if place.suffix == ".txt":  # which lists the images
        images = [place.parent / line for line in place.read_text().split("\n") if line.strip()]
    else:
        images = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f"{place} has no images; expected files of {', '.join(sorted(SUFFIXES))}.")
    names, problems, rows = content.get("names"), [], []
    files = [_beside(path) for path in images]
    for path, file in zip(images, files):
        rows.append([])
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        size = _size(path) if lines else None
        for number, line in enumerate(lines, 1):
            if line.strip():
                found, fault = _row(line, size, names)
                rows[-1] += [found] if found else []
                problems += [f"{file}, line {number}: {fault}: {line!r:.80}"] if fault else []
    folders = {file.parent for file in files} - {path.parent for path in images}
    left = {p for folder in folders if folder.is_dir() for p in folder.glob("*.txt")} - {*files}
    problems += [f"{file} has no image" for file in sorted(left)]
    _report(place, problems, bad_rows)
    most = max((kind for found in rows for _, kind in found), default=-1)
    names = names or [str(kind) for kind in range(most + 1)]
    return [*map(str, images)], _labels(rows, ("boxes", "classes")), names


def _labels(rows, names):
    """Turn the rows of each image into an array for each name."""
    labels = {
        name: [np.asarray([row[i] for row in image], DTYPES[name]) for image in rows]
        for i, name in enumerate(names)
    }
    return labels | {"boxes": [boxes.reshape(-1, 4) for boxes in labels["boxes"]]}


def _fault(box):
    """What is wrong with x, y, width and height; None for nothing."""
    numbers = isinstance(box, (list, tuple)) and all(type(n) in (int, float) for n in box)
    if not numbers or len(box) != 4 or not np.isfinite(box).all():
        return f"the box must be 4 finite numbers, got {box!r:.80}"
    return f"width and height must be positive, got {box}" if min(box[2:]) <= 0 else None


def _row(line, size, names):
    """(([left, top, right, bottom], class), None) of a row of a label file, or (None, fault)."""
    try:
        kind, *box = map(float, line.split())
    except ValueError:
        return None, "expected numbers"
    if len(box) != 4:
        return None, f"expected class x y width height, got {len(box) + 1} numbers"
    if fault := _fault(box):
        return None, fault
    if not (kind >= 0 and kind == int(kind)) or (names and kind >= len(names)):
        known = f"below {len(names)}, as many as there are names" if names else "from 0"
        return None, f"the class must be a whole number {known}"
    if not (min(box) >= 0 and max(box) <= 1):
        return None, "x, y, width and height must lie in 0..1"
    (x, y, width, height), (wide, high) = box, size
    sides = (x - width / 2) * wide, (y - height / 2) * high
    return ([*sides, (x + width / 2) * wide, (y + height / 2) * high], int(kind)), None


def _report(where, problems, bad_rows):
    if problems:
        more = [f"... {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        text = "\n  ".join([f"{where}: {len(problems)} bad rows:", *problems[:SHOWN], *more])
        if choose("bad_rows", bad_rows, ("error", "skip")) == "error":
            raise ValueError(text + '\nMend them, or leave them out with bad_rows="skip".')
        warnings.warn(text, stacklevel=3)


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
