"""Seeded mutations of good files: every way in which a file of a studies folder may be broken."""

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

SHAPE = (12, 11, 10)
AFFINE = np.array([[0.0, -1.2, 0, 5], [1.5, 0, 0, -7], [0, 0, 2, 11], [0, 0, 0, 1]])
FLOATS = (0.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"))
WORDS = (0, 1, -1, 2, 3, 5, 7, 8, 100, 255, 512, 32767, -32768)


def voxels(seed: int = 0) -> NDArray[np.float32]:
    """A smooth noisy ball, int16 values."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    ball = 300 * np.exp(-3 * (grid**2).sum(axis=0))
    return np.round(ball + rng.normal(100, 10, SHAPE)).astype(np.float32)


def nifti(array: Any = None) -> bytes:
    """A .nii file."""
    values = voxels().astype(np.int16) if array is None else array
    image: Any = nibabel.Nifti1Image(values, AFFINE, dtype=values.dtype)
    data: bytes = image.to_bytes()
    return data


def nrrd_file(folder: Path, encoding: str) -> bytes:
    """A .nrrd file."""
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    path = folder / "whole.nrrd"
    nrrd.write(str(path), voxels().astype(np.int16), {**header, "encoding": encoding})
    data = path.read_bytes()
    path.unlink()
    return data


def with_field(data: bytes, offset: int, code: str, value: Any) -> bytes:
    """A file with other bytes at a place."""
    packed = struct.pack("<" + code, value)
    return data[:offset] + packed + data[offset + len(packed) :]


def nifti_headers() -> Iterator[tuple[str, bytes]]:
    """Every field of the NIfTI-1 header set to extremes."""
    good = nifti()
    for name in nibabel.Nifti1Header.template_dtype.names:  # type: ignore[attr-defined]
        field, offset = nibabel.Nifti1Header.template_dtype.fields[name][:2]  # type: ignore[attr-defined]
        base, count = (field.base, int(np.prod(field.shape))) if field.shape else (field, 1)
        if base.kind == "S":
            for value in (b"\0", b"\xff", b"x"):
                yield f"{name}-{value.hex()}", good[:offset] + value * base.itemsize + good[offset + base.itemsize :]
            continue
        code = {"i1": "b", "u1": "B", "i2": "h", "i4": "i", "f4": "f"}[base.str[-2:]]
        values: list[Any] = list(FLOATS if code == "f" else WORDS)
        if code == "i":
            values += [2**31 - 1, -(2**31), 540, 1 << 20]
        if code in "bB":
            values = [0, 1, 31, 127]
        for i in range(count):
            for value in values:
                yield f"{name}{i}={value}", with_field(good, offset + i * base.itemsize, code, value)
    sizes = ((0, 0, 0), (-1, -1, -1), (32767, 32767, 32767), (30000, 30000, 2), (2000, 2000, 1000), (1, 1, 1320))
    for size in sizes:
        changed = good
        for i, n in enumerate(size):
            changed = with_field(changed, 42 + 2 * i, "h", n)
        yield f"dims {size}", changed
        yield f"packed dims {size}", gzip.compress(changed)


def random_damage(good: bytes, seed: int, count: int, *, head: int) -> Iterator[tuple[str, bytes]]:
    """Cut off anywhere, bits flipped (half of the time in the header), blocks zeroed, doubled, filled with noise."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(good)
        kind = number % 5
        at = int(rng.integers(head if rng.random() < 0.5 else len(data)))
        if kind in (0, 1):
            for place in rng.integers(0, head if number % 2 else len(data), size=int(rng.integers(1, 9))):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            length = int(rng.integers(1, 64))
            data[at : at + length] = rng.bytes(length) if rng.random() < 0.5 else bytes(length)
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 400))]
        yield f"damage {number}", bytes(data)


def arrays() -> Iterator[tuple[str, bytes]]:
    """Whole NIfTI files with voxels that are no image, and affines that are no place."""
    good = voxels()
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nan, infinite = good.copy(), good.copy()
    nan[3, 3, 3], infinite[3, 3, 3] = np.nan, np.inf
    kinds: dict[str, Any] = {
        "nan": nan,
        "infinite": infinite,
        "complex64": good.astype(np.complex64),
        "complex128": good.astype(np.complex128),
        "rgb": colour,
        "bool": (good > 150).astype(np.uint8),
        "float64 beyond float32": good.astype(np.float64) * 1e300,
        "float32 up to its end": (good / good.max() * 3.4e38).astype(np.float32),
        "both ends": np.where(good > 150, np.float32(3.4e38), np.float32(-3.4e38)),
        "tiny": (good * np.float32(1e-42)).astype(np.float32),
        "int64": good.astype(np.int64) << 40,
        "uint64": good.astype(np.uint64),
        "4-D": np.stack([good] * 3, axis=-1),
        "4-D of one": good[..., None],
        "5-D": np.stack([good] * 3, axis=-1)[:, :, :, None],
        "7-D": good.reshape(*SHAPE, 1, 1, 1, 1),
        "2-D": good[:, :, 0],
        "1-D": good[:, 0, 0],
        "one slice": good[:, :, :1],
        "zero size": good[:, :, :0],
        "constant": np.full(SHAPE, 7, np.int16),
        "two voxels a side": good[:2, :2, :2],
    }
    for name, array in kinds.items():
        yield name, nifti(array)
        yield f"packed {name}", gzip.compress(nifti(array))
    header = with_field(with_field(nifti()[:352], 70, "h", 1536), 72, "h", 128)
    yield "float128", header + good.astype(np.longdouble).tobytes(order="F")
    affines = {
        "micrometres": np.diag([1e-3, 1e-3, 1e-3, 1]),
        "kilometres": np.diag([1e6, 1e6, 1e6, 1]),
        "metres": np.diag([1000.0, 1000, 1000, 1]),
        "flat": np.diag([1.0, 1, 0, 1]),
        "parallel": np.array([[1.0, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "nearly parallel": np.array([[1.0, 1, 0, 0], [0, 1e-3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "far away": np.array([[1.0, 0, 0, 1e30], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "needle": np.diag([1e5, 1.0, 1.0, 1]),
        "mirrored": np.diag([-1.0, 1, 1, 1]),
    }
    for name, affine in affines.items():
        data = with_field(with_field(nifti(), 252, "h", 0), 254, "h", 1)  # qform_code, sform_code
        for place, value in enumerate(affine[:3].ravel()):
            data = with_field(data, 280 + 4 * place, "f", value)
        yield f"affine {name}", data


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small gzip files that hold, or announce, far more than they should."""
    good = nifti()
    zeros = gzip.compress(bytes(1 << 27), compresslevel=1)  # 128 MB in 0.6
    yield "holds 1 GB more", gzip.compress(good) + zeros * 8
    for offset in (1e9, 2e9):
        yield f"voxels behind {offset:g} zeros", gzip.compress(with_field(good, 108, "f", offset)) + zeros * 8
    # An extension that says it is 1 GB long.
    extended = with_field(good[:348] + b"\1\0\0\0" + struct.pack("<ii", 1 << 30, 6), 108, "f", float(1 << 30))
    yield "extension of 1 GB", gzip.compress(extended) + zeros * 8
    announces = good
    for i in range(3):
        announces = with_field(announces, 42 + 2 * i, "h", 2000)
    yield "announces 16 GB", gzip.compress(announces)


def nrrd_headers(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Broken headers, voxels elsewhere, sizes that cannot be."""
    good = nrrd_file(folder, "raw")
    head, body = good.split(b"\n\n", 1)
    lines = head.split(b"\n")
    keys = [line.split(b":")[0] for line in lines[1:] if b": " in line and not line.startswith(b"#")]
    for key in keys:
        rest = [line for line in lines if not line.startswith(key + b":")]
        yield f"without {key.decode()}", b"\n".join(rest) + b"\n\n" + body
        for value in (
            b"", b"0", b"-1", b"nan", b"1e999", b"99999999999999999999", b"2 2", b"(1,0,0) (0,1,0)", b"none none none",
            b"(nan,0,0) (0,1,0) (0,0,1)", b"2000 2000 2000", b"60000 60000 60000", b"0 11 10", b"-12 11 10",
            b"12 11 10 3", b"block", b"double", b"gzip", b"bzip2", b"ascii", b"hex", b"right-up", b"/etc/passwd",
        ):  # fmt: skip
            changed = [line if not line.startswith(key + b":") else key + b": " + value for line in lines]
            yield f"{key.decode()} is {value.decode()}", b"\n".join(changed) + b"\n\n" + body
    for extra in (
        b"data file: /etc/passwd", b"data file: ../../../../etc/passwd", b"datafile: /dev/zero", b"data file: LIST",
        b"byte skip: -1", b"byte skip: 1000000000000", b"line skip: 2000000000", b"byteskip: 7", b"data file: x.nrrd",
    ):  # fmt: skip
        yield extra.decode(), b"\n".join([*lines, extra]) + b"\n\n" + body
        yield f"{extra.decode()}, no voxels", b"\n".join([*lines, extra]) + b"\n\n"
    packed = nrrd_file(folder, "gzip")
    yield "gzip bomb", packed + gzip.compress(bytes(1 << 27), compresslevel=1) * 8
    yield "endless line", b"NRRD0004\n" + b"x" * (8 << 20)


def slice_of(number: int, series: str, **changes: Any) -> FileDataset:
    """One slice of a good MR series."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.Modality = "No^Body", "0", "MR"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = series + ".1", series, number + 1
    pixels = voxels()[:, :, number % SHAPE[2]].T.astype(np.uint16)
    data.Rows, data.Columns = pixels.shape
    data.PixelSpacing, data.ImageOrientationPatient = [1.5, 1.2], [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [-5.0, 7.0, 2.0 * number]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.add_new("PixelData", "OW", pixels.tobytes())
    data.is_little_endian, data.is_implicit_VR = True, False
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def write_series(folder: Path, slices: list[Any]) -> Path:
    """A folder of DICOM files."""
    folder.mkdir()
    for number, data in enumerate(slices):
        data.save_as(folder / f"{number:03}.dcm", write_like_original=False)
    return folder


def series_folders(parent: Path) -> Iterator[Path]:
    """Folders of DICOM, each broken in another way."""
    uid = "1.2.826.0.1.3680043.8.498.1"
    good = lambda **changes: [slice_of(n, uid, **changes) for n in range(SHAPE[2])]  # noqa: E731
    one = lambda place, **changes: [slice_of(n, uid, **(changes if n == place else {})) for n in range(SHAPE[2])]  # noqa: E731
    yield write_series(parent / "good series", good())
    yield write_series(parent / "series [1] *?", good())
    yield write_series(parent / "mixed", [*good()[:5], *(slice_of(n, uid + ".7") for n in range(5, 10))])
    yield write_series(parent / "two of everything", [*good(), *good()])
    yield write_series(parent / "missing slices", [data for n, data in enumerate(good()) if n not in (3, 4)])
    yield write_series(parent / "single slice", good()[:1])
    yield write_series(parent / "two slices", good()[:2])
    wrong: dict[str, Any] = {
        "Rows": (5, 0, 65535, None), "Columns": (7, 0, 65535, None), "PixelData": (b"", b"\1\2", None),
        "PixelSpacing": ([0, 0], [-1, 1], [1e30, 1e30], [1], None), "InstanceNumber": (1, -5, None),
        "ImagePositionPatient": ([0, 0, 0], [0, 0], [1e30, 0, 0], None), "SamplesPerPixel": (3, 0, None),
        "ImageOrientationPatient": ([0, 1, 0, 1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0], None),
        "BitsAllocated": (8, 1, 32, 7, 0, None), "PixelRepresentation": (1, 9, None), "NumberOfFrames": (4, 0, 10**6),
        "RescaleSlope": (0, 1e38, -1), "RescaleIntercept": (1e38, 5), "PhotometricInterpretation": ("RGB", "", None),
        "SeriesInstanceUID": ("1.2.3", None),
    }  # fmt: skip
    for name, values in wrong.items():
        for number, value in enumerate(values):
            yield write_series(parent / f"one {name} {number}", one(4, **{name: value}))
            yield write_series(parent / f"all {name} {number}", good(**{name: value}))
    for syntax in (JPEG2000Lossless, RLELossless, DeflatedExplicitVRLittleEndian):
        folder = write_series(parent / f"syntax {syntax.name}"[:60], good())
        for file in folder.iterdir():  # says that it is compressed, and is not
            file.write_bytes(
                file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", str(syntax).encode()[:20].ljust(20, b"\0"))
            )
        yield folder
    stray = write_series(parent / "with others among them", good())
    (stray / "readme.txt").write_text("hello")
    (stray / "sub").mkdir()
    os.mkfifo(stray / "a fifo")
    (stray / "a link").symlink_to("/etc/passwd")
    yield stray
    rng = np.random.default_rng(5)
    for number in range(40):
        folder = write_series(parent / f"damaged series {number}", good())
        for file in sorted(folder.iterdir())[:: int(rng.integers(1, 9))]:
            damaged = next(random_damage(file.read_bytes(), number * 100, 1, head=900))[1]
            file.write_bytes(damaged if number % 2 else file.read_bytes()[: int(rng.integers(0, 1500))])
        yield folder
    for name in ("empty folder", "folder.nii.gz", "folder.nrrd"):
        (parent / name).mkdir()
        yield parent / name


def odd_places(parent: Path) -> Iterator[Path]:
    """Things that are no files, files that are something else, and names."""
    os.mkfifo(parent / "fifo.nii.gz")
    os.mkfifo(parent / "fifo.nrrd")
    (parent / "nowhere.nii.gz").symlink_to(parent / "no such file")
    (parent / "loop.nii.gz").symlink_to(parent / "loop.nii.gz")
    (parent / "zero.nii").symlink_to("/dev/zero")
    (parent / "passwd.nii").symlink_to("/etc/passwd")
    yield from (parent / name for name in ("fifo.nii.gz", "fifo.nrrd", "nowhere.nii.gz", "loop.nii.gz"))
    yield from (parent / name for name in ("zero.nii", "passwd.nii", "missing.nii.gz"))
    good, packed = nifti(), gzip.compress(nifti())
    contents = {
        "gzip in a nii.nii": packed,
        "plain in a gz.nii.gz": good,
        "nrrd in a nii.nii": nrrd_file(parent, "raw"),
        "nii in a nrrd.nrrd": good,
        "twice packed.nii.gz": gzip.compress(packed),
        "text.nii": b"a letter\n" * 100,
        "text.nii.gz": gzip.compress(b"a letter\n" * 100),
        "empty.nii": b"",
        "empty.nii.gz": gzip.compress(b""),
        "line\nbreak.nii": b"no",
        "tab\tand \x1b[31m colour.nrrd": b"no",
        "ümläut 心臓 💙.nii.gz": packed,
        " blanks .nii.gz": packed,
        f"{'long' * 48}.nii": b"no",
        "capitals.NII.GZ": packed,
        "unknown.mha": good,
    }
    for name, data in contents.items():
        (parent / name).write_bytes(data)
        yield parent / name
    secret = parent / "secret.nii"
    secret.write_bytes(good)
    secret.chmod(0)
    yield secret


def all_files(folder: Path) -> list[Path]:
    """Writes every mutation; well over a thousand."""
    good, packed = nifti(), gzip.compress(nifti())
    pair: Any = nibabel.Nifti2Image(voxels(), AFFINE)
    sets: dict[str, tuple[str, Iterator[tuple[str, bytes]]]] = {
        "headers": (".nii", nifti_headers()),
        "damage": (".nii", random_damage(good, 1, 200, head=352)),
        "packed": (".nii.gz", random_damage(packed, 2, 200, head=60)),
        "second": (".nii", random_damage(pair.to_bytes(), 3, 100, head=544)),
        "arrays": (".nii", arrays()),
        "bombs": (".nii.gz", bombs()),
        "nrrd": (".nrrd", nrrd_headers(folder)),
        "nrrd damage": (".nrrd", random_damage(nrrd_file(folder, "raw"), 4, 100, head=400)),
        "nrrd packed": (".nrrd", random_damage(nrrd_file(folder, "gzip"), 5, 100, head=500)),
        "cut": (".nii.gz", ((str(n), packed[:n]) for n in range(0, len(packed), 25))),
    }
    written = []
    for name, (extension, contents) in sets.items():
        (folder / name).mkdir()
        for what, data in contents:
            path = folder / name / (what.replace("/", "_")[:80] + extension)
            path.write_bytes(data)
            written.append(path)
    for name, places in {"series": series_folders, "places": odd_places}.items():
        (folder / name).mkdir()
        written += places(folder / name)
    return written
