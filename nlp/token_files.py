"""What a tokenizer's files hold, read with distrust: sizes, types, ids and ranges are checked."""

import base64
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..presets.tensors import parse_json

MAX_FILE_BYTES = 256 * 2**20  # the largest public tokenizer.json is 34 MB
PIECE_LIMIT = 512  # characters or bytes of a piece that merges are worked out for
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def named_tokens(tokens):
    """{"bos_token": "<s>", ...} of tokens in the order of NAMES, with spaces between."""
    return dict(zip(NAMES, tokens.split()))


@contextmanager
def refused(where, what="is not a valid tokenizer file"):
    """Turn whatever the `tokenizers` package raises for bad content into a ValueError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception, and a BaseException where Rust panics
        raise ValueError(f"{where} {what}: {error}") from error


def read_bytes(path):
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; a tokenizer file has at most {MAX_FILE_BYTES:,}."
        )
    return path.read_bytes()


def read_text(path):
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path, missing_ok=False):
    if missing_ok and not path.is_file():
        return {}
    return parse_json(read_text(path), str(path))


# --- vocabularies ---------------------------------------------------------------------------------
def check_ids(vocabulary, where):
    """Raise ValueError where the ids of {token: id} are not 0, 1, 2, ..., each once."""
    ids = vocabulary.values()
    if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(vocabulary))):
        raise ValueError(
            f"The ids of {where} must be 0 .. {len(vocabulary) - 1}, each once (a whole number)."
        )


def vocabulary_dict(vocabulary):
    """{token: id} of a list, a dict, a vocab.json or a vocab.txt."""
    where, path = "a vocabulary", not isinstance(vocabulary, (dict, list, tuple))
    if path and str(vocabulary).endswith(".json"):
        where, vocabulary = f"the vocabulary in {vocabulary}", read_json(vocabulary)
    if isinstance(vocabulary, dict):
        check_ids(vocabulary, where)
        return vocabulary
    if path:
        lines = read_text(vocabulary).split("\n")
        vocabulary = lines[:-1] if lines[-1] == "" else lines
    ids = {token: index for index, token in enumerate(vocabulary)}
    if len(ids) < len(vocabulary):  # of a token that is there twice the last counts, as elsewhere
        ids |= {f"[twice {i}]": i for i, token in enumerate(vocabulary) if ids[token] != i}
    return ids


def merge_pairs(merges):
    """[(left, right), ...] of a list of pairs or of "left right", or the path of a merges.txt."""
    where = "merges"
    if not isinstance(merges, (list, tuple)):
        where, lines = str(merges), read_text(merges).split("\n")
        start = 1 if lines[0].startswith("#version") else 0
        merges = [line for line in lines[start:] if line.strip()]
    pairs = []
    for number, merge in enumerate(merges):
        pair = tuple(merge.split()) if isinstance(merge, str) else tuple(merge)
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(
                f"{where}: merge {number} must be two tokens, left and right; got {merge!r:.80}."
            )
        pairs.append(pair)
    return pairs


def merges_of(order):
    """The (left, right) that a vocabulary of ranked pieces implies, what ranks first first.

    order: {piece: rank}, pieces str or bytes, of SentencePiece's BPE or tiktoken
    """
    merges = []
    for piece in sorted(order, key=order.get):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [cut for cut in cuts if cut[0] in order and cut[1] in order]
        merges += sorted(found, key=lambda cut: (order[cut[0]], order[cut[1]]))
    return merges


def read_ranks(path):
    """{token as bytes: rank} of a tiktoken file: lines of base64 and rank."""
    ranks = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            # Whisper's file names an empty token with a lone "=", which is no strict base64.
            token = b"" if token == b"=" else base64.b64decode(token, validate=True)
            rank = int(rank)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected a token in base64 and its rank, got "
                f"{line[:60]!r} ({error})."
            ) from None
        if token in ranks or len(token) > PIECE_LIMIT:
            raise ValueError(f"{path}, line {number}: {token[:40]!r} is there twice or too long.")
        ranks[token] = rank
    check_ids(ranks, f"the tokens in {path}")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise ValueError(f"{path} lacks {len(lacking)} of the 256 single bytes: {lacking[:8]}.")
    return ranks


# --- what stands beside the vocabulary ------------------------------------------------------------
def content_of(token, where):
    """The text of a token that is a string or a record with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where} must be a token (or a record with its content), got {token!r}.")
    return text


def read_special_tokens(folder, config, defaults):
    """{"pad_token": "[PAD]", ...} that the folder's files name, over the class' own."""
    named = {**read_json(folder / "special_tokens_map.json", missing_ok=True), **config}
    found = {name: named.get(name) or defaults.get(name) for name in [*defaults, *NAMES]}
    given = [(name, token) for name, token in found.items() if token is not None]
    return {name: content_of(token, f"{folder}: {name}") for name, token in given}


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_added_tokens(folder, config, special_tokens):
    """Records of the tokens beyond the vocabulary's file, in the order of their ids.

    They stand in tokenizer_config.json (id -> record), or in added_tokens.json (token -> id).
    """
    where, special = f"{folder}: added_tokens", set(special_tokens.values())
    decoder = config.get("added_tokens_decoder") or {}
    plain = read_json(folder / "added_tokens.json", missing_ok=True)
    if not isinstance(decoder, dict) or not all(type(index) is int for index in plain.values()):
        raise ValueError(f"{where} must map ids to records (or, in added_tokens.json, to ids).")
    records = {index: {"content": t, "special": t in special} for t, index in plain.items()}
    for index, record in decoder.items():
        if not index.isdecimal() or not isinstance(record, dict):
            raise ValueError(
                f"{where}_decoder must map ids to records; got {index!r}: {record!r:.60}."
            )
        records[int(index)] = record
    return [
        {**record, "id": index, "content": content_of(record, where)}
        for index, record in sorted(records.items())
    ]


def read_chat_template(folder, config):
    """The folder's chat template: a str, {name: str} where there are several, or None."""
    found = config.get("chat_template")
    if isinstance(found, list):
        if not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
            raise ValueError(f"{folder}: chat_template must list records of name and template.")
        found = {each["name"]: each.get("template") for each in found}
    named = found if isinstance(found, dict) else {} if found is None else {"default": found}
    if (path := folder / "chat_template.jinja").is_file():
        named["default"] = read_text(path)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = read_text(path)
    if not all(isinstance(text, str) for text in named.values()):
        raise ValueError(f"{folder}: chat_template must be text, got {found!r:.80}.")
    return named["default"] if list(named) == ["default"] else named or None


# --- tokenizer.json -------------------------------------------------------------------------------
def parts(component):
    """A normalizer, pre-tokenizer or decoder of tokenizer.json and all that stand inside it."""
    if isinstance(component, dict):
        yield component
        for value in component.values():
            for each in value if isinstance(value, list) else []:
                yield from parts(each)


def check_normalizers(content, path):
    """Check the character maps of a tokenizer.json."""
    for part in parts(content.get("normalizer")):
        if part.get("type") == "Precompiled":
            try:
                charsmap = base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: precompiled_charsmap is not base64: {error}") from None
            check_charsmap(charsmap, path)


def check_charsmap(charsmap, where):
    """Raise ValueError where a walk through SentencePiece's map of characters leaves the map.

    Layout: bytes of the trie (uint32), the trie as a double array of uint32, texts
    that end in NUL. A unit's children stand at (its index ^ offset) ^ byte; with bit 8 its value
    stands at the first of them.
    """
    if not charsmap:
        return
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or not 0 < size <= len(charsmap) - 4:
        raise ValueError(
            f"{where}: the map of characters claims {size:,} of {len(charsmap)} bytes."
        )
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype("int64")
    texts = np.frombuffer(charsmap, "u1", offset=4 + size)
    inner = units < 2**31
    first = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    sound = ((first[inner] | 255) < len(units)).all()
    if sound:
        values = units[first[inner & (units >> 8 & 1 == 1)]] & (2**31 - 1)
        sound = values.size == 0 or (
            values.max() < len(texts) and (texts[values] & 0xC0 != 0x80).all() and texts[-1] == 0
        )
    if not sound:
        raise ValueError(f"{where}: the map of characters points outside itself; it is damaged.")


# --- SentencePiece's model ------------------------------------------------------------------------
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2


@dataclass
class SentencePieceModel:
    """What khub needs of a SentencePiece model file, with the format's defaults."""

    pieces: list = field(default_factory=list)  # (piece, score, type)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    ids: dict = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True


def fields(data):
    """(number, value) of a protobuf message: int for varints, bytes for all else."""
    position, end, fixed = 0, len(data), {1: 8, 5: 4}

    def varint(position):
        value = shift = 0
        while position < end and shift < 70:
            byte = data[position]
            value |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                return value & (2**64 - 1), position
        raise ValueError(f"it is cut off at byte {position}.")

    while position < end:
        key, position = varint(position)
        kind = key & 7
        if kind not in (0, 1, 2, 5):
            raise ValueError(f"wire type {kind}.")
        value, position = (fixed[kind], position) if kind in fixed else varint(position)
        if kind != 0:  # what was read is a size
            size, left = value, end - position
            if size > left:
                raise ValueError(f"byte {position} claims {size:,} bytes, and {left:,} are left.")
            value, position = data[position : position + size], position + size
        yield key >> 3, value


def parse_sentence_piece(data, where):
    """Read a SentencePiece model file: https://github.com/google/sentencepiece, its .proto."""
    model, seen = SentencePieceModel(), set()
    try:
        for number, value in fields(data):
            if number == 1:
                piece = {1: b"", 2: struct.pack("<f", 0), 3: NORMAL, **dict(fields(value))}
                text, (score,) = piece[1].decode("utf-8"), struct.unpack("<f", piece[2])
                if text in seen or not text or len(text) > PIECE_LIMIT or score != score:
                    what = f"piece {len(seen)}, {text!r:.60},"
                    raise ValueError(f"{what} is empty, long or there twice")
                seen.add(text)
                model.pieces.append((text, score, piece[3]))
            elif number == 2:
                spec = dict(fields(value))
                model.kind, model.byte_fallback = spec.get(3, UNIGRAM), bool(spec.get(35, 0))
                for key, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
                    index = spec.get(key, model.ids[name])
                    model.ids[name] = index - 2**64 if index >= 2**63 else index
            elif number == 3:
                spec = {3: 1, 4: 1, **dict(fields(value))}
                model.charsmap = b"" + spec.get(2, b"")  # a TypeError where it is a number
                model.dummy_prefix, model.remove_extra_spaces = bool(spec[3]), bool(spec[4])
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{where} is no valid SentencePiece model: {error}") from error
    if model.kind not in (UNIGRAM, BPE) or not 0 <= model.ids["unk"] < len(model.pieces):
        raise ValueError(
            f"{where} has {len(model.pieces)} pieces, kind {model.kind} and the unknown piece "
            f"{model.ids['unk']}; expected a unigram (1) or BPE (2) model with one."
        )
    check_charsmap(model.charsmap, where)
    return model
