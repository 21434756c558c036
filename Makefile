# The commands of this project: 'make serve' to use it, 'make test' to check it. 'make' alone lists them.
#
# Two set-ups in .venv: what the server needs (requirements.txt) and, on top, what the tests need
# (requirements-dev.txt). Each is made once, and again when its list or the place of this folder has changed: a stamp
# in .venv holds both. Everything is quoted and relative, so that a folder with a blank in its name works.

HOST ?= 127.0.0.1
PORT ?= 8000
STUDIES ?=
TASK ?=
PYTHON ?=
DICOM ?=
DICOM_PORT ?= 8042
export HOST PORT STUDIES TASK PYTHON DICOM DICOM_PORT

IN_VENV := .venv/bin/python
SET_UP := sh .ci/setup

.NOTPARALLEL:
.PHONY: help serve serve-dicom test quick e2e soak lint lock clean

help:
	@echo "make serve                       the server with the sample study, on http://127.0.0.1:8000"
	@echo "make serve STUDIES=/path TASK=hippocampus PORT=9000 HOST=127.0.0.1"
	@echo "                                 the server with your own folder"
	@echo "make serve-dicom DICOM=/path     a DICOM server (Orthanc) on this machine with these files, and OHIF in the browser"
	@echo "make test                        lint, types and all tests"
	@echo "make quick                       lint, types and the quick tests, under 3 minutes"
	@echo "make e2e                         installs Orthanc, Chromium and node where it may, then the tests that need them"
	@echo "make soak                        100 kills, then eight annotators for 20 minutes; about an hour"
	@echo "make lock                        the pinned requirements anew, from pyproject.toml"
	@echo "make clean                       remove .venv and what tools have left; never labels"

serve:
	@$(SET_UP) serve
	@$(IN_VENV) main.py serve --host "$$HOST" --port "$$PORT" $${STUDIES:+--studies "$$STUDIES"} $${TASK:+--task "$$TASK"}

serve-dicom:
	@$(SET_UP) serve
	@$(IN_VENV) main.py serve-dicom --host "$$HOST" --port "$$PORT" --dicom-port "$$DICOM_PORT" $${TASK:+--task "$$TASK"} $${DICOM:+"$$DICOM"}

lint:
	@$(SET_UP) test
	$(IN_VENV) -m pip check
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check
	$(IN_VENV) -m mypy

test: lint
	$(IN_VENV) -m pytest

quick: lint
	$(IN_VENV) -m pytest -m "not slow"

e2e:
	@$(SET_UP) e2e
	$(IN_VENV) -m pytest tests/dicom tests/viewers tests/e2e/test_slicer.py tests/server/test_page.py tests/server/test_auto_train.py

soak:
	@$(SET_UP) test
	$(IN_VENV) tests/durability/soak.py

lock:
	@$(SET_UP) lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist lib/svgd_label.egg-info
	rm -rf tests/viewers/node_modules
	find lib tests apps benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
