"""What pyproject.toml cannot say: the rooms are found, and two folders beside the package belong to it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pplleak", "pplleak.*"]), "pplleak.models", "pplleak.inference"],
    package_dir={"pplleak.models": "models", "pplleak.inference": "inference"},
)
