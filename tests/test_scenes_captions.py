"""Captions: parsed back with a grammar of their own, and every owned word checked against its object."""

import dataclasses
import re

import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import captions
from ediffi_jax.data.scenes import vocabulary as v

RNG = np.random.default_rng(1)
MANY = [scenes.sample_scene(RNG) for _ in range(3000)]
RELATED = [s for s in MANY if s.relation]

COLOURS = "|".join(v.COLOURS)
SHAPES = "|".join(v.SHAPES)
THING = rf"an? (?:(small|large) )?(?:(striped|dotted) )?({COLOURS}) ({SHAPES})"
CANONICAL = re.compile(
    rf"{THING} ({'|'.join(v.RELATIONS)}) {THING} on a (?:background from (\w+) to (\w+)|(\w+) background)"
    r"(?: in (\w+) style)?"
)


def test_canonical_form_reads_as_promised():
    a = scenes.Object(colour="red", shape="circle", x=0.3)
    b = scenes.Object(colour="blue", shape="square", x=0.7)
    scene = scenes.Scene(objects=(a, b), relation="left of")
    assert scenes.canonical(scene) == "a red circle left of a blue square on a gray background"
    texts = {scenes.caption(scene, np.random.default_rng(i)) for i in range(300)}
    assert "on the left a red circle and on the right a blue square" in texts
    assert "a blue square with a red circle to its left" in texts
    assert "a red circle is left of a blue square. the circle is red, the square is blue, the circle is on the left" in texts


def test_canonical_caption_parses_back_to_the_scene():
    for scene in RELATED:
        words = CANONICAL.fullmatch(scenes.canonical(scene)).groups()
        looks = [(a or "medium", b or "solid", c, d) for a, b, c, d in (words[:4], words[5:9])]
        assert looks == [o.look for o in scene.objects]
        assert words[4] == scene.relation
        first = words[9] or words[11]
        assert (first, words[10] or "", words[12] or "flat") == (scene.background, scene.gradient_to, scene.style)


def test_owned_words_belong_to_their_objects():
    allowed = {"a", "an", "the", *v.COUNTS.values()}
    for scene in MANY:
        text, owners = scenes.caption_with_owners(scene, RNG)
        words = text.split()
        assert len(words) == len(owners) <= 40
        for word, owner in zip(words, owners):
            bare = word.strip(".,:")
            if owner >= 0:
                thing = scene.objects[owner]
                own = {thing.size, thing.texture, thing.colour, thing.shape, v.plural(thing.shape)}
                assert bare in own | allowed
            else:
                assert bare not in v.COLOURS and bare not in v.SHAPES


def test_every_object_is_named_with_its_colour():
    for scene in MANY:
        text, owners = scenes.caption_with_owners(scene, RNG)
        words = [word.strip(".,:") for word in text.split()]
        named = {(words[i], owners[i]) for i in range(len(words))}
        looks = [o.look for o in scene.objects]
        for i, thing in enumerate(scene.objects):
            first = looks.index(thing.look)
            shapes = {(thing.shape, first), (v.plural(thing.shape), first)}
            assert (thing.colour, first) in named and shapes & named, text
            if i == first and looks.count(thing.look) > 1:
                assert v.COUNTS[looks.count(thing.look)] in words


def test_what_is_unsaid_is_the_default():
    for scene in MANY:
        text = scenes.caption(scene, RNG)
        if scene.style != "flat":
            assert f"{scene.style} style" in text
        else:
            assert "style" not in text
        if scene.background != "gray" or scene.gradient_to:
            assert scene.background in text and scene.gradient_to in text
    plain = [s for s in MANY if s.background == "gray" and not s.gradient_to]
    said = np.mean(["gray" in scenes.caption(s, RNG) for s in plain])
    assert 0.4 < said < 0.6


def test_a_style_left_to_the_picture_is_not_said_and_the_rest_is():
    for scene in MANY[:300]:
        silent = dataclasses.replace(scene, named_style=False)
        text = scenes.canonical(silent)
        assert "style" not in text
        assert text == scenes.canonical(dataclasses.replace(scene, style="flat"))
        assert scenes.Scene.from_json(silent.to_json()) == silent


def test_articles_and_vocabulary():
    words = set()
    for scene in MANY:
        text = scenes.caption(scene, RNG)
        assert text == text.lower() and "  " not in text and "{" not in text and " ," not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        words |= {word.strip(".,:") for word in text.split()}
    assert len(words) < 150


@pytest.mark.parametrize("form", captions.FORMS)
def test_each_form_mentions_both_and_says_the_same_each_time(form):
    for scene in RELATED[:50]:
        text, owners = scenes.caption_with_owners(scene, np.random.default_rng(0), form)
        assert {0, 1} <= set(owners)
        assert text == scenes.caption(scene, np.random.default_rng(0), form)


def test_phrasings_are_many():
    scene = RELATED[0]
    assert len({scenes.caption(scene, np.random.default_rng(i)) for i in range(400)}) > 25


def test_unknown_form_is_refused():
    with pytest.raises(scenes.SceneError, match="did you mean 'canonical'"):
        scenes.caption(RELATED[0], RNG, form="canonicl")
