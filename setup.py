"""Packaging. Each dependency says what it is here for; bounds are the versions the tests run on, up to the next breaking one."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

REQUIREMENTS = [
    "torch>=2.6,<2.14",  # tensors, autograd, the process group; the bound keeps to builds that this project was run on
    "deepspeed>=0.19.8,<0.20",  # ZeRO-3 and its launcher
    "transformers>=5.20,<6",  # the LLM and its tokenizer
    "peft>=0.21,<1",  # LoRA
    "accelerate>=1.10,<2",  # transformers asks for it as soon as a model is loaded under DeepSpeed
    "openai-whisper==20250625",  # the speech encoder and the text normalisers
    "webdataset>=1.0.2,<2",  # the shard format's writer
    "jiwer>=4.0,<5",  # word alignment behind WER
    "pyyaml>=6.0,<7",  # the run's configuration
    "mpi4py>=4.0,<5",  # ranks under mpirun
    "pydantic>=2.10,<3",  # strict configuration models
    "typer>=0.15,<1",  # the command line
    "rich>=13.7,<16",  # progress bars and tables
    "numpy>=1.26,<3",  # arrays
    "scipy>=1.12,<2",  # BLAS syrk and LAPACK Cholesky for the scan
    "soundfile>=0.13,<1",  # audio decoding and FLAC writing
    "soxr>=0.5,<2",  # resampling
    "psutil>=5.9,<8",  # memory that is free for a replica to evaluate with
    "safetensors>=0.5,<1",  # checkpoints
    "huggingface_hub>=1.0,<2",  # model ids where there is a network, and push
    "gguf>=0.17,<1",  # GGUF checkpoints
    "fsspec>=2025.2",  # remote shards, with the extras http, s3 and gs
    "tensorboard>=2.18,<3",  # live curves
    "matplotlib>=3.9,<4",  # plots
    "jinja2>=3.1,<4",  # the reports' pages, whose values are escaped by it
]
EXTRAS = {
    "demo": ["espeakng-loader==0.2.4"],  # generated speech for the quickstart
    "parquet": ["pyarrow>=15"],  # rankings as Parquet
    "http": ["aiohttp>=3.10,<4"],  # shards behind http(s)://
    "s3": ["s3fs>=2025.2"],  # shards behind s3://
    "gs": ["gcsfs>=2025.2"],  # shards behind gs://
    "datasets": ["datasets>=4,<6"],  # packing Hugging Face datasets from disk
    "wandb": ["wandb>=0.31,<1"],  # training.loggers: Weights & Biases; from here on its end has a time limit
    "trackio": ["trackio>=0.43,<1"],  # training.loggers: trackio
    # training.loggers: MLflow, without its server and what models of other kinds need; the last two are for its file in the run
    # folder, and not needed where a server is named
    "mlflow": ["mlflow-skinny>=3.17,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"],
    "docs": ["mkdocs-material>=9.5,<10"],  # the site: mkdocs serve
    "kaldialign": ["kaldialign>=0.10,<1"],  # WER that takes compounds as one word; 0.10 is the first that does
    "lm-eval": ["lm-eval>=0.4.9,<0.5"],  # text tasks on an export
    "test": [
        "pytest>=8,<10",
        "pytest-timeout>=2.3,<3",  # a collective that hangs must fail
        "build>=1.2,<2",  # the wheel and the source archive
        "setuptools>=77",  # what builds them
        "pytest-xdist>=3.6,<4",  # all cores at the tests
        "hypothesis>=6.100,<7",  # properties before examples
        "ruff>=0.14,<1",
        "mypy>=1.18,<3",
        "types-PyYAML>=6,<7",
        "openmpi>=5,<6",  # mpirun for the MPI backend
        "pyarrow>=15",  # reads our Parquet back
        "aiohttp>=3.10,<4",  # shards over HTTP
        "s3fs>=2025.2",  # shards from S3
        "moto[s3,server]>=5,<6",  # an S3 API on loopback
        "datasets>=4,<6",  # a dataset on disk to pack
        "kaldialign>=0.10,<1",  # its edits against our own
        "lm-eval>=0.4.9,<0.5",  # its accuracy of questions against our own
        "trackio>=0.43,<1",  # the lightest of the loggers: its file read back, and a real run's
    ],
}


class BuildWithScripts(build_py):
    """Puts into the wheel what a clone has beside the package and its commands need (kappaspeech/shipped.py finds it)."""

    SHIPPED = (
        "launch/*.sh",
        "launch/slurm/*",
        "launch/kubernetes/*",
        "launch/configs/*.yaml",
        "launch/shapes/*/*",
        "ds_configs/*.json",
    )
    # these work in a clone alone
    LEFT_OUT = ("quickstart.sh", "test.sh", "offline_wheels.sh")

    def run(self) -> None:
        super().run()
        here = Path(__file__).parent
        if getattr(self, "editable_mode", False):
            return
        for path in (path for pattern in self.SHIPPED for path in here.glob(pattern) if path.name not in self.LEFT_OUT):
            target = Path(self.build_lib, "kappaspeech/shipped", path.relative_to(here))
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setup(
    name="kappaspeech",
    version="0.1.0",
    description="κ-selected fine-tuning of speech LLMs on DeepSpeed (arXiv:2506.16289)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="kappaspeech maintainers",
    # placeholders until the project has a home
    url="https://example.org/kappaspeech",
    project_urls={
        "Documentation": "https://example.org/kappaspeech/docs",
        "Source": "https://example.org/kappaspeech/source",
        "Changelog": "https://example.org/kappaspeech/source/CHANGELOG.md",
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10,<3.14",
    cmdclass={"build_py": BuildWithScripts},
    package_dir={"": "pipeline"},
    packages=find_packages("pipeline"),
    package_data={
        "kappaspeech": ["py.typed"],
        "kappaspeech.demo": ["text/*.txt"],
        "kappaspeech.planning": ["shapes.json"],
        "kappaspeech.evaluation": ["hypotheses.css", "hypotheses.js", "hypotheses.html.jinja"],
        "kappaspeech.trained": ["card.md.jinja"],
        "kappaspeech.comparison": ["page.css", "page.js", "page.html.jinja"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["kappaspeech=kappaspeech.commands:main"]},
)
