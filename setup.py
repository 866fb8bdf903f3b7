"""Builds comer_d2 and its operator.

The compiled part is two libraries on LibTorch's stable ABI and Python's limited API, so that one
build runs under every torch from 2.11 and every Python from 3.10:

* `comer_d2._C`: schemas and CPU kernels, always built.
* `comer_d2._C_cuda`: CUDA kernels, built where a CUDA toolkit and a CUDA build of torch are; no GPU
  is needed. FORCE_CUDA=1 makes their absence an error, FORCE_CUDA=0 leaves the library out, and
  TORCH_CUDA_ARCH_LIST chooses the architectures.

torch is imported only when something is built, so reading the metadata needs setuptools alone.
"""

import os
import re
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Turing, Ampere, Ada and Hopper, with PTX for what comes after.
DEFAULT_CUDA_ARCH_LIST = "7.5;8.0;8.6;8.9;9.0+PTX"
CPU_SOURCES = sorted(
    str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
)
CUDA_SOURCES = sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.c*") if p.suffix in (".cu", ".cpp")
)
HEADERS = sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".inc", ".cuh")
)
# The torch interface that is compiled against: 2.11, the oldest that has everything used here.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
CXX_FLAGS = [
    *DEFINES,
    "-std=c++20",  # torch 2.11's builder passes 17, later headers ask for 20
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # What lets the compiler vectorise comparisons and fuse multiply-add; no reordering, and
    # not-a-number keeps its meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-Wno-psabi",  # vectors never cross a function that is not inlined
    "-Wno-maybe-uninitialized",  # of gcc 12, in its own AVX-512 header
]
NVCC_FLAGS = [*DEFINES, "-DUSE_CUDA", "-std=c++20", "-O3", "--threads=2"]


# A report's page and plots: training writes one, so `detectron2` has them, too.
REPORT = ["jinja2", "matplotlib"]
# What comer_d2.d2 imports beside Detectron2 itself, which is on no index: `make install` gets it.
DETECTRON2 = [
    *REPORT,
    "pycocotools",
    "fvcore",
    "omegaconf",
    "tqdm",
    "Pillow>=10.1",
    "shapely",  # Detectron2 cuts polygon masks with it, in every recipe that crops
    "huggingface_hub",
]
QUICKSTART = [*DETECTRON2, "scikit-learn", "tensorboard"]
SUPERVISION = ["supervision"]
VIDEO = ["av>=14.1"]  # which says how a film is turned
DEMO = ["gradio"]
EXPORT = ["onnx", "onnxruntime", "onnxscript"]
LOGGERS = ["wandb", "mlflow-skinny"]
DOCS = ["mkdocs-material", "mkdocstrings[python]"]
EXTRAS = {
    "detectron2": DETECTRON2,
    "quickstart": QUICKSTART,
    "report": REPORT,
    "supervision": SUPERVISION,
    "video": VIDEO,
    "loggers": LOGGERS,
    "export": EXPORT,
    "demo": DEMO,
    "docs": DOCS,
    "test": [
        *QUICKSTART,
        *SUPERVISION,
        *VIDEO,
        *DEMO,
        *EXPORT,
        *LOGGERS,
        *DOCS,
        "pytest",
        "playwright",
        "ruff",
        "mypy",
        "peft",
        "torchao",
    ],
}


def version() -> str:
    """The package's own, which is written there alone."""
    text = (ROOT / "comer_d2" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def wants_cuda(torch_cuda_version: str | None, cuda_home: str | None) -> bool:
    """Whether the CUDA library is built: FORCE_CUDA decides, else what is installed."""
    force = os.environ.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise SystemExit(f"FORCE_CUDA must be 0, 1 or unset, got {force!r}")
    missing = []
    if torch_cuda_version is None:
        missing.append("the installed torch is a CPU build")
    if cuda_home is None or not (Path(cuda_home) / "bin" / "nvcc").exists():
        missing.append("no CUDA toolkit with nvcc was found (set CUDA_HOME)")
    if force == "1" and missing:
        raise SystemExit("FORCE_CUDA=1, but " + " and ".join(missing))
    return force != "0" and not missing


def cuda_library_dirs(nvcc: Path) -> list[str]:
    """Where libcudart is, as nvcc itself says: the nvcc on PATH may be a script in another tree."""
    said = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    ).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    if top is None:
        return []
    folders = [Path(top[1]) / "lib64", Path(top[1]) / "lib", *Path(top[1]).glob("targets/*/lib")]
    return [str(folder.resolve()) for folder in folders if (folder / "libcudart.so").exists()]


def operator_extensions() -> list[Extension]:
    """The libraries that this machine can build."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension

    # Named explicitly: the linker must not depend on what the builder of one version adds.
    common = {"libraries": ["torch", "torch_cpu"], "py_limited_api": True, "depends": HEADERS}
    cxx = [*CXX_FLAGS, *os.environ.get("COMER_D2_CXX_FLAGS", "").split()]
    extensions = [
        CppExtension("comer_d2._C", CPU_SOURCES, extra_compile_args={"cxx": cxx}, **common)
    ]
    if CUDA_SOURCES and wants_cuda(torch.version.cuda, CUDA_HOME):
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCH_LIST)
        common["libraries"] = [*common["libraries"], "torch_cuda"]
        extensions.append(
            CUDAExtension(
                "comer_d2._C_cuda",
                CUDA_SOURCES,
                extra_compile_args={"cxx": cxx, "nvcc": NVCC_FLAGS},
                library_dirs=cuda_library_dirs(Path(CUDA_HOME) / "bin" / "nvcc"),
                **common,
            )
        )
    return extensions


class BuildOperator(build_ext):
    """Hands the work to torch's extension builder, which is imported when something is built."""

    def run(self) -> None:
        try:
            from torch.utils.cpp_extension import BuildExtension
        except ImportError as error:
            raise SystemExit(
                "building comer_d2 needs torch in this Python: pip install torch, then "
                f"pip install --no-build-isolation . ({error})"
            ) from error
        self.distribution.ext_modules = operator_extensions()
        builder = type("build_ext", (BuildExtension,), {})(self.distribution)
        for option in ("inplace", "editable_mode", "build_lib", "build_temp", "debug", "force"):
            setattr(builder, option, getattr(self, option))
        builder.ensure_finalized()
        builder.run()
        # What setuptools asks this command afterwards: the files that were written.
        self.extensions, self.ext_map = builder.extensions, builder.ext_map
        self.shlibs = builder.shlibs


setup(
    name="comer_d2",
    version=version(),
    description="ViT-CoMer for Detectron2: the backbone, its deformable attention, its training",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["comer_d2", "comer_d2.*"]),
    package_data={"comer_d2": ["py.typed"], "comer_d2.d2.report": ["*.html"]},
    # COMER_D2_SKIP_BUILD=1: without the operator, where there is no compiler.
    ext_modules=[]
    if os.environ.get("COMER_D2_SKIP_BUILD") == "1"
    else [Extension("comer_d2._C", CPU_SOURCES, py_limited_api=True)],
    cmdclass={"build_ext": BuildOperator},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    python_requires=">=3.10",
    # What the rooms without Detectron2 import, and no more.
    install_requires=["torch>=2.11", "torchvision", "timm", "numpy", "scipy", "safetensors"],
    entry_points={"console_scripts": ["comer-d2=comer_d2.__main__:main"]},
    extras_require={name: sorted(set(packages)) for name, packages in EXTRAS.items()},
)
