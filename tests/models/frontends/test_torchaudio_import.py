"""The import trap of torchaudio, in fresh interpreters because it is about import order."""

import os
import subprocess
import sys

BROKEN = {
    "__init__.py": "from . import _extension\nfrom .functional import resample, align\n",
    "_extension/__init__.py": (
        "import torchaudio._extension.utils\nraise OSError('libcudart.so is missing')\n"
    ),
    "_extension/utils.py": "",
    "functional.py": """
from torchaudio._extension import fail_if_no_align, _IS_TORCHAUDIO_EXT_AVAILABLE as native
def resample():
    return 'native' if native else 'python'
@fail_if_no_align
def align():
    pass
""",
}


def run_python(program, *paths):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def broken_torchaudio(folder):
    for name, text in BROKEN.items():
        path = folder / "torchaudio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


ENSURED = """
from klassify.models.frontends.torchaudio_import import ensure_importable
ensure_importable()
import torchaudio
print(torchaudio.__file__, torchaudio.resample())
try:
    print(torchaudio.align())
except RuntimeError as error:
    print(error)
"""


def test_a_broken_torchaudio_becomes_importable(tmp_path):
    out = run_python(ENSURED, broken_torchaudio(tmp_path)).splitlines()
    assert out[0].startswith(str(tmp_path)) and out[0].endswith(" python")
    assert "align" in out[1] and "native part" in out[1]


def test_a_whole_torchaudio_is_left_alone(tmp_path):
    folder = broken_torchaudio(tmp_path)
    (folder / "torchaudio/_extension/__init__.py").write_text(
        "_IS_TORCHAUDIO_EXT_AVAILABLE = True\nfail_if_no_align = lambda function: function\n"
    )
    out = run_python(ENSURED, folder).splitlines()
    assert out[0].endswith(" native") and out[1] == "None"
