"""What pyproject.toml cannot say of the build: the extension, which is left out where it cannot be compiled."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "dynamo.router._kernel",
            ["native/kernel.cpp"],
            depends=["native/block_index.hpp", "native/memory.hpp", "native/xxh3.hpp"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0"],
            optional=True,  # dynamo.router.kernel then takes the version in Python
        )
    ]
)
