"""Packages are found, so that no new folder is left out; configs/ is installed as jaxseq.configs. All else is in setup.cfg."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jaxseq", "jaxseq.*"]), "jaxseq.configs"])
