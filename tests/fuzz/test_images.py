"""Any file of a studies folder may be broken in any way: it works, or it is refused in one sentence that names it."""

import gzip
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.fuzz.mutations import all_files, nifti, series_folders, voxels, with_field

from svgd_label.images import ImageError, load_volume
from svgd_label.scoring import prepare
from svgd_label.tasks import Task, load_task

CPU_SECONDS = 10.0
STUCK_SECONDS = 60.0  # without an answer, however busy the machine is
WORKERS = 2
MORE_MEGABYTES = 400  # than the first, good file needed; none of the files that can be used has 1 MB


class Worker:
    """A child process, and what it is busy with; it is replaced when a file kills it or keeps it too long."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process that waits for paths."""
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process, self.answers), daemon=True).start()

    @staticmethod
    def _listen(process: "subprocess.Popen[str]", answers: "queue.Queue[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def ask(self, path: Path) -> dict[str, Any]:
        """What came of a file; "crash" or "hang" where nothing did."""
        assert self.process.stdin is not None
        used, begun = self._cpu(), time.monotonic()
        self.process.stdin.write(json.dumps(str(path)) + "\n")
        self.process.stdin.flush()
        while True:
            try:
                line = self.answers.get(timeout=1.0)
            except queue.Empty:
                if self._cpu() - used < CPU_SECONDS and time.monotonic() - begun < STUCK_SECONDS:
                    continue
                return self._replaced("hang", path)
            if not line:
                return self._replaced("crash", path)
            answer: dict[str, Any] = json.loads(line)
            return answer

    def _replaced(self, result: str, path: Path) -> dict[str, Any]:
        self.process.kill()
        self.process.wait()
        self.start()
        return {"result": result, "text": "", "path": str(path), "megabytes": 0}

    def _cpu(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)


def ask_all(files: list[Path], good: Path) -> tuple[list[dict[str, Any]], int]:
    """Answers to all files, and the memory that a good one takes."""
    todo: queue.Queue[Path] = queue.Queue()
    for file in files:
        todo.put(file)
    answers: list[dict[str, Any]] = []
    first: list[int] = []

    def work() -> None:
        worker = Worker()
        begin = worker.ask(good)
        assert begin["result"] == "works", begin
        first.append(begin["megabytes"])
        while True:
            try:
                answers.append(worker.ask(todo.get_nowait()))
            except queue.Empty:
                break
        worker.process.kill()
        worker.process.wait()

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, max(first)


@pytest.mark.slow
def test_no_file_of_more_than_a_thousand_does_harm(tmp_path: Path) -> None:
    good = tmp_path / "good.nii"
    good.write_bytes(nifti())
    files = all_files(tmp_path)
    assert len(files) > 1000
    answers, megabytes = ask_all(files, good)
    assert len(answers) == len(files)
    harm = [answer for answer in answers if answer["result"] not in ("works", "refused")]
    assert not harm, harm[:5]
    for answer in answers:
        name, text = Path(answer["path"]).name, answer["text"]
        printable = "".join(c if c.isprintable() else "?" for c in name)
        if answer["result"] == "refused":
            assert printable[:190] in text, answer
            assert "\n" not in text and "Traceback" not in text and len(text) < 400, answer
        assert answer["megabytes"] < megabytes + MORE_MEGABYTES, answer
    results = Counter(answer["result"] for answer in answers)
    assert results["works"] > 100 and results["refused"] > 500, (
        results
    )  # the mutations are neither all harmless nor all fatal


# What did harm once, each by itself.


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("sample")


def refused(file: Path, task: Task) -> str:
    """The sentence with which an image is refused for scoring."""
    with pytest.raises(ImageError) as caught:
        prepare(task, file.name, str(file))
    return str(caught.value)


def write(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30])
def test_voxels_at_an_impossible_byte_are_refused(value: float, task: Task, tmp_path: Path) -> None:
    assert "a.nii" in refused(write(tmp_path / "a.nii", with_field(nifti(), 108, "f", value)), task)


@pytest.mark.parametrize("code", [0, 1, 255, 1536 + 1, -1])
def test_an_unknown_type_of_voxel_is_refused(code: int, task: Task, tmp_path: Path) -> None:
    assert "a.nii" in refused(write(tmp_path / "a.nii", with_field(nifti(), 70, "h", code)), task)


def test_a_fifo_is_refused_and_not_waited_for(task: Task, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    assert "not a regular file" in refused(tmp_path / "a.nii.gz", task)


def test_a_link_to_a_device_is_refused(task: Task, tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("/dev/zero")
    assert "not a regular file" in refused(tmp_path / "a.nii", task)


def test_one_flipped_bit_in_packed_voxels_is_noticed(task: Task, tmp_path: Path) -> None:
    stored = bytearray(gzip.compress(nifti(), compresslevel=0))  # not packed, so that any bit can be flipped unseen
    stored[len(stored) // 2] ^= 4
    assert "CRC" in refused(write(tmp_path / "a.nii.gz", bytes(stored)), task)


def test_voxels_behind_a_gigabyte_of_zeros_are_not_looked_for(task: Task, tmp_path: Path) -> None:
    bomb = gzip.compress(with_field(nifti(), 108, "f", 1e9)) + gzip.compress(bytes(1 << 26), compresslevel=1) * 16
    assert "a.nii.gz" in refused(write(tmp_path / "a.nii.gz", bomb), task)


def test_a_packed_file_too_small_for_what_it_announces_is_refused_unread(task: Task, tmp_path: Path) -> None:
    data = nifti()
    for axis in range(3):
        data = with_field(data, 42 + 2 * axis, "h", 500)
    assert "cut off" in refused(write(tmp_path / "a.nii.gz", gzip.compress(data)), task)


@pytest.mark.parametrize("size", [1e5, 1e12])
def test_a_volume_that_would_be_kilometres_long_is_not_resampled(size: float, task: Task, tmp_path: Path) -> None:
    data = with_field(with_field(nifti(), 252, "h", 0), 254, "h", 1)
    for place, value in enumerate(np.diag([size, 1, 1, 1])[:3].ravel()):
        data = with_field(data, 280 + 4 * place, "f", value)
    refused(write(tmp_path / "a.nii", data), task)


@pytest.mark.parametrize("line", [b"data file: /etc/passwd", b"datafile: other.raw", b"data file: LIST"])
def test_a_nrrd_header_does_not_lead_to_another_file(line: bytes, task: Task, tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n" + line + b"\n\n"
    (tmp_path / "other.raw").write_bytes(bytes(range(64)))
    assert "another file" in refused(write(tmp_path / "a.nrrd", header), task)


def test_a_line_break_in_a_name_does_not_break_the_sentence(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_volume(write(tmp_path / "a\nERROR b.nii", b"no"))
    assert str(caught.value).startswith("a?ERROR b.nii: ")


def test_folders_of_dicom(task: Task, tmp_path: Path) -> None:
    folders = {folder.name: folder for folder in series_folders(tmp_path)}
    expected = {
        "mixed": "several series",
        "two of everything": "do not follow one another",
        "missing slices": "even distances",
        "single slice": "single-channel 3-D",
        "one Rows 0": "differ in size",
        "all NumberOfFrames 0": "several frames",
        "all ImagePositionPatient 3": "lacks ImagePositionPatient",
        "one ImageOrientationPatient 0": "not parallel",
        "folder.nii.gz": "no DICOM",
    }
    for name, words in expected.items():
        assert words in refused(folders[name], task), name
    # A fifo, a folder, a link and a text lie beside the slices; brackets in a name are no pattern.
    for name in ("good series", "with others among them", "series [1] *?"):
        np.testing.assert_array_equal(load_volume(folders[name])[0].numpy(), voxels())


# Nothing that is broken may win a ranking: without grey values there is no mutual information with anything.


def almost_constant(bright: int) -> Any:
    image = np.full((24, 24, 24), 100, np.int16)
    image.flat[:: image.size // bright] = 5000
    return image


@pytest.mark.parametrize("bright", [1, 10])
def test_a_constant_image_with_some_bright_voxels_is_left_out(bright: int, task: Task, tmp_path: Path) -> None:
    assert "99 %" in refused(write(tmp_path / "a.nii", nifti(almost_constant(bright))), task)
