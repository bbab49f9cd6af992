.PHONY: test check format gpu

test:  ## the test suite
	python -m pytest -q -n 2

check:  ## everything the gate asks for, beside the tests
	ruff check .
	ruff format --check .
	@# Relative imports of the root are resolved under the package's name, whatever this folder is called.
	named=$$(mktemp -d) && ln -s "$(CURDIR)" "$$named/jminigpt4" && ty check --project "$$named/jminigpt4"
	mlinter configuration_jminigpt4.py modeling_jminigpt4.py image_processing_jminigpt4.py processing_jminigpt4.py

format:  ## put the code in order
	ruff check --fix .
	ruff format .

gpu:  ## checks and figures of one GPU at true size, into docs/gpu.md; minutes, and skipped without a GPU
	GPU_PAGE=docs python -m pytest -q -rs -k "cuda or page" tests/gpu
