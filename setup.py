# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which packages are installed, and under which names; everything else is in pyproject.toml.

`convert` and `configs` are folders at the top of a checkout. As names of installed packages they could collide with
others, so they are installed as uso_jax_convert and uso_jax.configs.
"""

from setuptools import find_packages, setup

convert = find_packages(include=["convert", "convert.*"])
setup(
    packages=[
        *find_packages(include=["uso_jax", "uso_jax.*"]),
        *(f"uso_jax_{name}" for name in convert),
        "uso_jax.configs",
    ],
    package_dir={"uso_jax_convert": "convert", "uso_jax.configs": "configs"},
)
