"""Packaging of sat_vg. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "sat_vg" / "__init__.py").read_text())
assert VERSION is not None

setup(
    name="sat_vg",
    version=VERSION.group(1),
    description="Fine-tune torchvision backbones on satellite images and hand them over as feature extractors",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The sat_vg developers",
    keywords="satellite aerial remote-sensing fine-tuning feature-extractor visual-grounding pytorch torchvision",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["sat_vg", "sat_vg.*"]), "sat_vg.recipes"],
    package_dir={"sat_vg.recipes": "configs"},  # in the wheel they lie inside the package
    package_data={
        "sat_vg": [
            "py.typed",
            "backbone_finetuning/configs/*.yaml",
            "backbone_finetuning/models/networks/*.json",
            "backbone_finetuning/reports/templates/*",
            "grounding/report.html",
        ],
        "sat_vg.recipes": ["*.yaml"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "numpy>=1.26",
        "pillow>=10.3",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "safetensors>=0.4.3",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "pyyaml>=6.0",
    ],
    extras_require={
        "timm": ["timm>=1.0"],
        "geo": ["rasterio>=1.3"],
        "onnx": ["onnx>=1.16", "onnxscript>=0.1", "onnxruntime>=1.18"],
        "parquet": ["pyarrow>=15"],
        "search": ["faiss-cpu>=1.8"],
        "webdataset": ["webdataset>=1.0"],
        "text": ["transformers>=4.50"],
        "tune": ["optuna>=4.0"],
        "serve": ["fastapi>=0.110", "uvicorn>=0.30", "python-multipart>=0.0.12"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
            "scikit-learn>=1.4",
            "torchmetrics>=1.4",
            "timm>=1.0",
            "onnx>=1.16",
            "onnxscript>=0.1",
            "onnxruntime>=1.18",
            "pyarrow>=15",
            "rasterio>=1.3",
            "webdataset>=1.0",
            "transformers>=4.50",
            "optuna>=4.0",
            "fastapi>=0.110",
            "uvicorn>=0.30",
            "python-multipart>=0.0.12",
            "playwright>=1.45",
            "nbclient>=0.10",
            "ipykernel>=6.29",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
        ],
    },
    entry_points={"console_scripts": ["sat-vg = sat_vg.cli:main"]},
)
