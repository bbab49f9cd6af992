.PHONY: test check format

test:  ## the test suite
	python -m pytest -q -n 2

check:  ## everything the gate asks for, beside the tests
	ruff check .
	ruff format --check .
	ty check
	mlinter .

format:  ## put the code in order
	ruff check --fix .
	ruff format .
