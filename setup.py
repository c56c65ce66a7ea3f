"""What pyproject.toml cannot say: the wheel's tag. CMakeLists.txt builds the native libraries."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class PlatformWheel(bdist_wheel):
    """One wheel a platform: the libraries depend on neither Python's ABI nor torch's."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's (python, abi, platform) tag."""
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"bdist_wheel": PlatformWheel})
