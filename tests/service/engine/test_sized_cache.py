"""Values with a size are kept up to a limit, those that were used last."""

from service.engine.sized_cache import SizedCache


def test_the_least_recently_used_values_make_room() -> None:
    cache = SizedCache(10)
    for name in "abc":
        cache.put(name, name.upper(), 3)
    assert cache.get("a") == "A"
    cache.put("d", "D", 3)
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]


def test_a_value_that_is_too_large_is_left_out_and_replaces_the_old_one() -> None:
    cache = SizedCache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    cache.put("a", 3, 11)
    assert (cache.get("a"), cache.get("b")) == (None, 2)
    cache.put("c", 4, 6)
    assert (cache.get("b"), cache.get("c")) == (2, 4)


def test_a_value_put_in_again_counts_once() -> None:
    cache = SizedCache(10)
    for _ in range(5):
        cache.put("a", 1, 6)
    cache.put("b", 2, 4)
    assert (cache.get("a"), cache.get("b")) == (1, 2)
