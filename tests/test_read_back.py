# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a file that a program reads, the outcome is a value or one sentence for the user."""

import pytest
import read_back
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uso_jax.common.errors import InputError


def outcome(case, folder, data):
    """Read the data; an InputError is a sentence, and so is the exit code 2 of a command."""
    try:
        return case.run(folder, data)
    except InputError as error:
        assert str(error) and "\n" not in str(error).replace(str(folder), ""), str(error)
        return error
    except SystemExit as error:
        assert error.code == 2
        return error


@pytest.mark.parametrize("name", read_back.CASES)
def test_the_valid_file_is_read(name, tmp_path):
    case = read_back.CASES[name]
    found = outcome(case, tmp_path, case.valid)
    # What these name does not exist.
    assert not isinstance(found, InputError | SystemExit) or "b.safetensors" in str(found)


@pytest.mark.parametrize("name", read_back.CASES)
@settings(
    deadline=None, derandomize=True, max_examples=25, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
def test_a_damaged_file_is_a_value_or_a_sentence(name, tmp_path, data):
    case = read_back.CASES[name]
    outcome(case, tmp_path, data.draw(read_back.damaged(case)))


@pytest.mark.parametrize("name", read_back.CASES)
def test_the_usual_damages(name, tmp_path):
    for data in read_back.WHOLE:
        outcome(read_back.CASES[name], tmp_path, data)
