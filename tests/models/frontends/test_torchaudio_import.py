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
    "functional.py": (
        "from torchaudio._extension import fail_if_no_align, _IS_TORCHAUDIO_EXT_AVAILABLE as"
        " native\ndef resample():\n    return 'native' if native else"
        " 'python'\n@fail_if_no_align\ndef align():\n    pass\n"
    ),
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


def test_a_broken_torchaudio_becomes_importable(tmp_path):
    program = (
        "from klassify.models.frontends.torchaudio_import import"
        " ensure_importable\nensure_importable()\nimport torchaudio\nassert"
        f" torchaudio.__file__.startswith({str(tmp_path)!r}),"
        " torchaudio.__file__\nprint(torchaudio.resample())\ntry:\n    torchaudio.align()\nexcept"
        " RuntimeError as error:\n    print(error)\n"
    )
    out = run_python(program, broken_torchaudio(tmp_path)).splitlines()
    assert out[0] == "python"
    assert "align" in out[1] and "native part" in out[1]


def test_a_whole_torchaudio_is_left_alone(tmp_path):
    folder = broken_torchaudio(tmp_path)
    (folder / "torchaudio/_extension/__init__.py").write_text(
        "_IS_TORCHAUDIO_EXT_AVAILABLE = True\nfail_if_no_align = lambda function: function\n"
    )
    program = (
        "from klassify.models.frontends.torchaudio_import import"
        " ensure_importable\nensure_importable()\nimport torchaudio\nprint(torchaudio.resample(),"
        " torchaudio.align())\n"
    )
    assert run_python(program, folder) == "native None"


def test_the_installed_transformers_gives_speech_models():
    program = (
        "from klassify.models.frontends.ssl import SSLFrontEnd\ntiny = dict(hidden_size=16,"
        " num_hidden_layers=1, num_attention_heads=2,"
        " intermediate_size=16)\nprint(SSLFrontEnd(normalize_input=False, architecture=tiny).dim)\n"
    )
    assert run_python(program) == "16"
