"""Prompts that often share a beginning: paths in a small tree, with a name for each place on the way."""

from hypothesis import strategies as st

from dynamo.tokens import HashArray, hash_array

Path = tuple[int, ...]

paths: st.SearchStrategy[Path] = st.lists(st.integers(0, 1), max_size=4).map(tuple)


def names(path: Path) -> HashArray:
    """A number for each prefix of the path, as sequence hashes are."""
    return hash_array(int("1" + "".join(map(str, path[: depth + 1]))) for depth in range(len(path)))
